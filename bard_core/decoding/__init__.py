"""The decoding engine: exact block-diffusion decoding of vision-language models, and the autoregressive baseline.

Read in this order: engine (the loop), body (how the stock model is called), cache, policies, speculative.
"""

from bard_core.decoding.autoregressive import generate_autoregressive
from bard_core.decoding.engine import generate, stream
from bard_core.decoding.output import BlockEvent, DoneEvent, Event, GenerationOutput, GenerationStats, RowStats, StepEvent

__all__ = [
    "BlockEvent",
    "DoneEvent",
    "Event",
    "GenerationOutput",
    "GenerationStats",
    "RowStats",
    "StepEvent",
    "generate",
    "generate_autoregressive",
    "stream",
]
