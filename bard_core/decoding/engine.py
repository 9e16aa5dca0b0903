"""The two ways to ask for a decode: its result, or its events one by one. ``batch`` says how it goes.

``schedule="paper"`` counts and commits as the release does; ``"fused"`` gives the same tokens with fewer forwards.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Unpack

from bard_core.decoding.batch import Decode
from bard_core.decoding.output import DoneEvent, Event, GenerationOutput
from bard_core.decoding.prompt import read_prompt
from bard_core.decoding.settings import Options, resolve
from bard_core.decoding.speculative import speculate


def generate(model: Any, inputs: Mapping[str, Any], **options: Unpack[Options]) -> GenerationOutput:
    """Decode a batch of prompts; ``settings.Settings`` documents the options. Several threads may do so with one model.

    Args:
        model: a Hugging Face model in eval mode (``bard_core.models.load``, or a stock one with ``mask_token_id`` given).
        inputs: what the processor returned, padded on either side.

    Raises:
        ValueError: an option or input is not usable; the message names it and what is allowed.
        FloatingPointError: the model's logits are not finite; the message names the row.
    """
    for event in stream(model, inputs, **options):
        if isinstance(event, DoneEvent):
            return event.output
    raise AssertionError("a decode ends with a DoneEvent")


def stream(model: Any, inputs: Mapping[str, Any], **options: Unpack[Options]) -> Iterator[Event]:
    """The same, event by event: a ``StepEvent`` a denoising step, a ``BlockEvent`` a final block, a ``DoneEvent`` at the end.

    Options and inputs are checked here, before the first event is asked for.
    """
    settings = resolve(model, **options)
    prompt = read_prompt(model, inputs)
    if settings.strategy == "self_speculative":
        return speculate(model, prompt, settings)
    return Decode(model, prompt, settings).run()
