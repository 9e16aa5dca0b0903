"""Self-speculative decoding for models with a token-causal clean stream: the output equals their greedy AR decoding exactly.

The same weights draft and verify. The next token is always known from the causal mode; the diffusion mode drafts the rest of
a block behind it in one noisy pass. The verifying forward ``[draft (clean, causal) | next block (noisy)]`` commits the tokens
on which both modes agree and yields the causal mode's token after them. Where the whole draft stands, it holds the next draft
already: one forward a block then, two otherwise.

Rows of a batch share the forwards but accept different lengths, so each goes on behind its own last token.
Shape suffixes: B active rows, n block size.
"""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bard_core.decoding.body import Body
from bard_core.decoding.compiled import new_body
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
from bard_core.decoding.rows import refuse_broken
from bard_core.decoding.settings import Settings


@dataclass
class _Row:
    """A row on its way: the rope position of its first response token, and its causal mode's next token.

    ``draft`` is a block that begins with ``known``, or empty where it has to be drafted. The prefill counts as a forward.
    """

    index: int
    prompt: int
    pad: int
    position: int
    known: int
    draft: list[int] = field(default_factory=list)
    response: list[int] = field(default_factory=list)
    forwards: int = 1

    @property
    def length(self) -> int:
        """Tokens that stand in the cache, padding included."""
        return self.prompt + len(self.response)


def speculate(model: Any, prompt: Prompt, settings: Settings) -> Iterator[Event]:
    """Events of a self-speculative decode. The prefill, whose last position yields the first token, counts as a forward.

    Raises:
        ValueError: a row of the prompt is empty, or the model's state cannot be rolled back; before the first event.
    """
    if min(prompt.lengths) == 0:
        raise ValueError("self-speculative decoding starts from the prompt's last token, but a row of input_ids is empty")
    width, response = prompt.input_ids_BL.shape[1], settings.ending.max_new_tokens + 2 * settings.block_size
    return _run(new_body(model, len(prompt.pads), width, response, "causal", settings.compiled), prompt, settings)


@torch.inference_mode()
def _run(body: Body, prompt: Prompt, settings: Settings) -> Iterator[Event]:
    started, first = time.perf_counter(), 0.0
    with closing(body):
        likeliest = _greedy(body, body.prefill(prompt, settings.block_size)[:, -1:], settings).tolist()
        for row, tokens in enumerate(likeliest):
            refuse_broken(min(tokens) < 0, row, "the prefill")
        known = [tokens[0] for tokens in likeliest]
        body.look_past(prompt.pads)
        starts = zip(prompt.pads, prompt.next_position_B.tolist(), known, strict=True)
        rows = [_Row(index, prompt.input_ids_BL.shape[1], *start) for index, start in enumerate(starts)]
        prefilled = time.perf_counter()
        for event in _decode(body, rows, settings):
            first = first or (time.perf_counter() - started if isinstance(event, BlockEvent) else 0.0)
            yield event
    stats = GenerationStats(
        tuple(RowStats(len(row.response), row.forwards) for row in rows),
        1 + body.forwards,
        prefilled - started,
        time.perf_counter() - prefilled,
        first,
    )
    sequences = pad_sequences([row.response for row in rows], settings.pad_token_id, body.device)
    yield DoneEvent(GenerationOutput(sequences, stats))


def _decode(body: Body, rows: list[_Row], settings: Settings) -> Iterator[Event]:
    """Fill the rows' responses, block by block; a row that ended leaves the batch."""
    n, block, active = settings.block_size, 0, list(rows)
    while active:
        _draft(body, active, settings)
        draft_Bn = torch.tensor([row.draft for row in active], device=body.device)
        names = tuple(row.index for row in active)
        yield StepEvent(block, 0, names, draft_Bn, torch.ones_like(draft_Bn, dtype=torch.bool), None)
        noise_Bn = torch.full_like(draft_Bn, settings.mask_token_id)
        predicted = _forward(body, active, torch.cat([draft_Bn, noise_Bn], 1), settings, clean=n)
        new = [_accept(row, tokens, settings) for row, tokens in zip(active, predicted, strict=True)]
        kept = [at for at, (_, done) in enumerate(new) if not done]
        yield BlockEvent(
            block,
            names,
            tuple(tokens for tokens, _ in new),
            tuple(row for row, (_, done) in zip(names, new, strict=True) if done),
        )
        if 0 < len(kept) < len(active):
            body.keep_rows(kept, [active[at].pad for at in kept])
        active = [active[at] for at in kept]
        block += 1


def _draft(body: Body, active: list[_Row], settings: Settings) -> None:
    """One noisy pass for the rows that have no draft; the others ride along, and are not charged for it."""
    n = settings.block_size
    waiting = [row for row in active if not row.draft]
    if not waiting:
        return
    noise = [[row.known] + [settings.mask_token_id] * (n - 1) for row in active]
    if n > 1:
        noise = _forward(body, active, torch.tensor(noise, device=body.device), settings, charged=waiting)
    for row, tokens in zip(active, noise, strict=True):
        row.draft = row.draft or [row.known, *tokens[1:]]


def _forward(
    body: Body, active: list[_Row], tokens_BQ: Tensor, settings: Settings, clean: int = 0, charged: list[_Row] | None = None
) -> list[list[int]]:
    """The likeliest tokens [B][Q] at these positions, every row going on behind what stands of it."""
    for row in active if charged is None else charged:
        row.forwards += 1
    starts = torch.tensor([row.position + len(row.response) for row in active], device=body.device)
    positions_BQ = starts[:, None] + torch.arange(tokens_BQ.shape[1], device=body.device)
    hidden = body(tokens_BQ, positions_BQ, clean, [row.length for row in active])
    likeliest = _greedy(body, hidden, settings).tolist()
    for row, tokens in zip(active, likeliest, strict=True):
        refuse_broken(min(tokens) < 0, row.index, f"the block behind its token {len(row.response)}")
    return likeliest  # type: ignore[no-any-return]


def _accept(row: _Row, predicted: list[int], settings: Settings) -> tuple[tuple[int, ...], bool]:
    """Take the tokens on which draft and causal mode agree; returns those that are part of the answer, and whether it ended."""
    n, agreed = settings.block_size, 1
    while agreed < n and row.draft[agreed] == predicted[agreed - 1]:
        agreed += 1
    new, done = settings.ending.cut(row.response, row.draft[:agreed])
    row.response += new
    row.known = predicted[agreed - 1]
    row.draft = [row.known, *predicted[n + 1 :]] if agreed == n else []
    return tuple(new), done


def _greedy(body: Body, hidden_BQD: Tensor, settings: Settings) -> Tensor:
    """The likeliest token [B, Q] that is not the mask; -1 where the logits are not finite."""
    logits = body.logits(hidden_BQD)
    logits[..., settings.mask_token_id] = -torch.inf
    likeliest, tokens = logits.max(-1)
    return tokens.where(likeliest.isfinite(), -1)
