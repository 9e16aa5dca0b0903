"""Self-speculative decoding for models with a token-causal clean stream: the output equals their greedy AR decoding exactly.

The same weights draft and verify. The next token is always known from the causal mode; the diffusion mode drafts the rest of
a block behind it in one noisy pass. The verifying forward ``[draft (clean, causal) | next block (noisy)]`` commits the tokens
on which both modes agree, yields the causal mode's token after them, and, where the whole draft stands, holds the next draft
already: one forward a block then, two otherwise.

Rows are decoded one by one over views of one prefilled cache, since they accept different lengths.
Shape suffix: n block size.
"""

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from bard_core.decoding.body import Body
from bard_core.decoding.cache import BlockCache, new_cache
from bard_core.decoding.compiled import CompiledBody
from bard_core.decoding.output import (
    BlockEvent,
    DoneEvent,
    Event,
    GenerationOutput,
    GenerationStats,
    RowStats,
    StepEvent,
    pad_sequences,
)
from bard_core.decoding.prompt import Prompt
from bard_core.decoding.settings import Settings


def speculate(model: Any, prompt: Prompt, settings: Settings) -> Iterator[Event]:
    """Events of a self-speculative decode. The prefill, whose last position yields the first token, counts as a forward.

    Raises:
        ValueError: a row of the prompt is empty, or the model's state cannot be rolled back; before the first event.
    """
    if min(prompt.lengths) == 0:
        raise ValueError("self-speculative decoding starts from the prompt's last token, but a row of input_ids is empty")
    capacity = prompt.input_ids_BL.shape[1] + settings.ending.max_new_tokens + 2 * settings.block_size
    return _run(model, Body(model, new_cache(model, capacity), "causal"), prompt, settings)


@torch.inference_mode()
def _run(model: Any, prefill: Body, prompt: Prompt, settings: Settings) -> Iterator[Event]:
    started = time.perf_counter()
    hidden = prefill.prefill(prompt, settings.block_size)
    known = _greedy(prefill.logits(hidden[:, -1:]), settings.mask_token_id)[:, 0].tolist()
    prefilled = time.perf_counter()
    responses, rows, first, forwards = [], [], 0.0, 0
    for row, pad in enumerate(prompt.pads):
        response: list[int] = []
        with closing(_row_body(model, prefill.cache.row(row, pad), settings.compiled)) as body:
            for event in _decode_row(body, row, int(prompt.next_position_B[row]), known[row], settings, response):
                first = first or (time.perf_counter() - started if isinstance(event, BlockEvent) else 0.0)
                yield event
        responses.append(response)
        rows.append(RowStats(len(response), 1 + body.forwards))
        forwards += body.forwards
    stats = GenerationStats(tuple(rows), 1 + forwards, prefilled - started, time.perf_counter() - prefilled, first)
    yield DoneEvent(GenerationOutput(pad_sequences(responses, settings.pad_token_id, prompt.input_ids_BL.device), stats))


def _row_body(model: Any, row: BlockCache, compiled: bool) -> Body:
    """A body over one row's cache, or over a copy of it in buffers that a compiled forward knows."""
    if not compiled:
        return Body(model, row, "causal")
    body = CompiledBody(model, 1, row.get_seq_length(), row.capacity - row.length, "causal")
    body.cache.copy_row(row)
    return body


def _decode_row(body: Body, row: int, position: int, known: int, settings: Settings, response: list[int]) -> Iterator[Event]:
    """Decode one row into ``response``; ``known`` is the causal mode's next token, ``position`` its rope position."""
    n, mask_id = settings.block_size, settings.mask_token_id
    device = body.device
    noise = torch.full((1, n), mask_id, device=device)
    draft: Tensor | None = None
    block = 0
    while True:
        here = torch.arange(position + len(response), position + len(response) + 2 * n, device=device)[None]
        if draft is None and n > 1:
            noisy = noise.clone()
            noisy[0, 0] = known
            draft = _greedy(body.logits(body(noisy, here[:, :n])), mask_id)
            body.cache.crop(-n)
        draft = noise.clone() if draft is None else draft
        draft[0, 0] = known
        yield StepEvent(block, 0, (row,), draft, torch.ones_like(draft, dtype=torch.bool), None)
        hidden = body(torch.cat([draft, noise], 1), here, clean=n)
        predicted = _greedy(body.logits(hidden), mask_id)
        drafted, causal = torch.cat([draft, predicted[:, :n]]).tolist()
        agreed = 1
        while agreed < n and drafted[agreed] == causal[agreed - 1]:
            agreed += 1
        body.cache.crop(-(n + n - agreed))
        known = causal[agreed - 1]
        new, done = settings.ending.cut(response, drafted[:agreed])
        response += new
        yield BlockEvent(block, (row,), (tuple(new),), (row,) if done else ())
        if done:
            return
        draft = predicted[:, n:].clone() if agreed == n else None
        block += 1


def _greedy(logits: Tensor, mask_token_id: int) -> Tensor:
    logits[..., mask_token_id] = -torch.inf
    return logits.argmax(-1)
