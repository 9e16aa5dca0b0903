"""Decoding: block diffusion with a cache written in place, and the autoregressive baseline, with honest counts."""

from bard_core.decoding.autoregressive import generate_autoregressive
from bard_core.decoding.engine import generate
from bard_core.decoding.output import DecodingStats, GenerationOutput

__all__ = ["DecodingStats", "GenerationOutput", "generate", "generate_autoregressive"]
