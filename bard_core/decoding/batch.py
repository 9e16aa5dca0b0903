"""Block-diffusion decoding (paper section 3.3): prefill once, then denoise one block after another against the key-value buffer.

A noisy position's logits predict that position's own token. ``schedule="paper"`` spends S denoising forwards on a block and
one more to commit it, but for the block in which the answer ends. ``schedule="fused"`` gives the same tokens (but where revision
would go on after the end) with fewer calls. The first step of the first block rides with the prefill. The clean pass of block b
rides with the first step of block b+1, in one forward in which clean queries do not see the noisy ones.

The same tokens: exactly so up to the rounding of a forward of another shape. In float32 that decides nothing; in bfloat16 two
tokens may tie, and then, as with stock ``generate`` alone and in a batch, a few answers in a hundred take the other one.

Rows join and leave between blocks only. What is known of a row alone is its ``Row``; of the batch there are the cache, the order
of the rows and ``position_B``.

Shape suffixes: B active rows, n block size, K visible keys.
"""

import time
from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from bard_core.decoding.compiled import new_body
from bard_core.decoding.output import (
    BlockEvent,
    DoneEvent,
    Event,
    GenerationOutput,
    GenerationStats,
    StepEvent,
    pad_sequences,
)
from bard_core.decoding.policies import make_policy, revise
from bard_core.decoding.prompt import Prompt
from bard_core.decoding.rows import Row, refuse_broken
from bard_core.decoding.sampling import propose
from bard_core.decoding.settings import Settings


class Decode:
    """One batch on its way: the rows still active, their cache and the position where their next block begins.

    ``run`` is a whole decode. A server calls ``advance`` block by block, and between two blocks lets rows join (``admit``) and
    leave (``retire``); whatever stands beside a row, its answer is that of its lone decode.
    """

    def __init__(self, model: Any, prompt: Prompt, settings: Settings) -> None:
        self.settings = settings
        self.prompt = prompt
        self.fused = settings.schedule == "fused"
        n, width = settings.block_size, prompt.input_ids_BL.shape[1]
        response = -(-settings.ending.max_new_tokens // n) * n
        self.body = new_body(model, len(prompt.lengths), width, response, settings.clean_attention, settings.compiled)
        self.device = self.body.device
        self.policy = make_policy(
            settings.strategy, n, settings.denoising_steps,
            settings.confidence_threshold, settings.entropy_bound, settings.factor,
        )  # fmt: skip
        self.offset = torch.arange(2 * n, device=self.device)
        self.all = tuple(Row(index, pad, settings, self.device) for index, pad in enumerate(prompt.pads))
        self.rows = list(self.all)
        self.position_B = prompt.next_position_B
        self.blocks = 0
        self._hidden: Tensor | None = None
        self._pending: Tensor | None = None

    @torch.inference_mode()
    def run(self) -> Iterator[Event]:
        with closing(self.body):
            yield from self._run()

    def _run(self) -> Iterator[Event]:
        n, started = self.settings.block_size, time.perf_counter()
        self._hidden = self._prefill()
        _wait(self.device)
        prefill_s = time.perf_counter() - started
        if self._hidden is not None:
            prefill_s *= 1 - n / (self.prompt.input_ids_BL.shape[1] + n)
        first = 0.0
        while self.rows:
            for event in self._block():
                if isinstance(event, BlockEvent):
                    first = first or time.perf_counter() - started
                yield event
        yield DoneEvent(self._output(prefill_s, time.perf_counter() - started - prefill_s, first))

    @torch.inference_mode()
    def advance(self) -> Iterator[Event]:
        """The events of the next block, the first one's with the prompt; to be read to their end."""
        if self.blocks == 0:
            self._hidden = self._prefill()
        yield from self._block()

    def _block(self) -> Iterator[Event]:
        for row in self.rows:
            row.steps.append(0)
        tokens_Bn = yield from self._denoise(self.blocks, self._hidden, self._pending)
        yield self._finish_block(self.blocks, tokens_Bn.tolist())
        self._pending = self._go_on(tokens_Bn)
        self._hidden, self.blocks = None, self.blocks + 1

    @torch.inference_mode()
    def admit(self, other: "Decode") -> int:
        """Take the rows of a decode with the same settings, between two blocks of both; ``other`` is used up.

        Returns:
            What is added to the names of its rows: events speak of row ``i`` of ``other`` as ``i`` plus this.

        Raises:
            ValueError: one of them has not finished its first block, which a row decodes beside its own prompt; or they
                sample (a row's seed is its place in the batch) or are compiled (for a number of rows).
        """
        if not (self.blocks and other.blocks) or self.settings.temperature > 0 or self.settings.compiled:
            raise ValueError("rows join behind their first block, and only batches that neither sample nor are compiled")
        added = len(self.all)
        for row in other.all:
            row.index += added
        self.all = (*self.all, *other.all)
        if self.rows and other.rows:
            self._join(other)
        elif other.rows:
            self.rows, self.body, self.position_B, self._pending = other.rows, other.body, other.position_B, other._pending
        return added

    def _join(self, other: "Decode") -> None:
        own, theirs = self.body.cache.length, other.body.cache.length
        length, n = max(own, theirs), self.settings.block_size
        for batch, held in ((self, own), (other, theirs)):
            for row in batch.rows:
                row.pad += length - held
        self.rows = [*self.rows, *other.rows]
        room = n + max(-(-row.left // n) * n for row in self.rows)
        self.body.cache.join(other.body.cache, length + room)
        self.position_B = torch.cat([self.position_B, other.position_B])
        if self._pending is not None and other._pending is not None:
            self._pending = torch.cat([self._pending, other._pending])
        self.body.look_past([row.pad for row in self.rows])

    @torch.inference_mode()
    def retire(self, names: Collection[int]) -> None:
        """Let rows go between two blocks, whose answers nobody waits for."""
        nothing = torch.empty(len(self.rows), 0, dtype=torch.long, device=self.device)
        kept = self._keep([row.index not in names for row in self.rows], nothing if self._pending is None else self._pending)
        self._pending = None if self._pending is None else kept

    def _prefill(self) -> Tensor | None:
        """Read the prompt; hidden states [B, n, D] of the first block, which rides along, if it does."""
        n, hidden = self.settings.block_size, None
        if self.prompt.input_ids_BL.shape[1]:
            riding = self._masks() if self.fused else None
            hidden = self.body.prefill(self.prompt, n, riding)
            if riding is not None:
                self.body.cache.crop(-n)
        self.body.look_past([row.pad for row in self.rows])
        return None if hidden is None or not self.fused else hidden[:, -n:]

    def _masks(self) -> Tensor:
        return torch.full((len(self.rows), self.settings.block_size), self.settings.mask_token_id, device=self.device)

    def _denoise(self, block: int, hidden: Tensor | None, pending_Bn: Tensor | None) -> Generator[Event, None, Tensor]:
        """Fill one block; returns its tokens [B, n]. One wait for the device a step.

        Args:
            hidden: of the first step, where its forward is done.
            pending_Bn: the clean block that the first step's forward has to commit.
        """
        settings, names = self.settings, tuple(row.index for row in self.rows)
        generators = [row.draw_anew() for row in self.rows] if settings.temperature > 0 else ()
        tokens = self._masks()
        masked = torch.ones_like(tokens, dtype=torch.bool)
        revisable = masked if settings.revision_threshold is not None else None
        is_open: Tensor | None = None  # [B]; None: every row is
        open_rows, step = [True] * len(self.rows), 0
        while any(open_rows):
            if hidden is None:
                hidden = self._forward_noisy(tokens, pending_Bn if step == 0 else None)
            proposal = propose(
                self.body.logits(hidden), settings.mask_token_id,
                temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p, generators=generators,
                held=None if revisable is None else tokens, with_entropy=settings.strategy == "entropy",
            )  # fmt: skip
            revised = None
            if revisable is not None:
                assert settings.revision_threshold is not None and proposal.current is not None
                revised = _within(is_open, revise(proposal.current, masked, revisable, settings.revision_threshold))
                revisable = revisable & ~revised
                masked = masked | revised
            filled = _within(is_open, self.policy(proposal, masked, step))
            tokens = torch.where(filled, proposal.tokens, tokens)
            masked = masked & ~filled
            if revised is not None:
                tokens = tokens.masked_fill(masked, settings.mask_token_id)
            for row, was_open in zip(self.rows, open_rows, strict=True):
                row.steps[-1] += was_open
            now_open = self._is_open(tokens, masked)
            yield StepEvent(block, step, names, tokens, filled, revised, proposal.confidence)
            open_rows, broken = torch.stack((now_open, proposal.broken)).tolist()
            for row, bad in zip(self.rows, broken, strict=True):
                refuse_broken(bad, row.index, f"step {step} of block {block}")
            is_open = None if all(open_rows) else now_open
            hidden, step = None, step + 1
        return tokens.masked_fill(masked, settings.pad_token_id)

    def _forward_noisy(self, tokens_Bn: Tensor, pending_Bn: Tensor | None) -> Tensor:
        """Hidden states [B, n, D] of the block being denoised; on the way the pending clean block enters the cache for good."""
        n = self.settings.block_size
        if pending_Bn is None:
            hidden = self.body(tokens_Bn, self.position_B[:, None] + self.offset[:n])
        else:
            hidden = self.body(torch.cat([pending_Bn, tokens_Bn], 1), self.position_B[:, None] - n + self.offset, clean=n)
        self.body.cache.crop(-n)
        return hidden[:, -n:]

    def _is_open(self, tokens_Bn: Tensor, masked_Bn: Tensor) -> Tensor:
        """Rows [B] whose block needs another step."""
        if not self.fused:
            return masked_Bn.any(1)
        needed, n = masked_Bn, self.settings.block_size
        left = [row.left for row in self.rows]
        if min(left) < n:
            needed = needed & (self.offset[:n] < torch.tensor(left, device=self.device)[:, None])
        if eos := self.settings.ending.eos_token_ids:
            ends = reduce(torch.logical_or, (tokens_Bn == token for token in eos))
            needed = needed & (ends.cumsum(1) == 0)
        return needed.any(1)

    def _finish_block(self, block: int, tokens: list[list[int]]) -> BlockEvent:
        """Give the rows their tokens."""
        new = tuple(row.take(ids) for row, ids in zip(self.rows, tokens, strict=True))
        names = tuple(row.index for row in self.rows)
        return BlockEvent(block, names, new, tuple(row.index for row in self.rows if row.done))

    def _go_on(self, tokens_Bn: Tensor) -> Tensor | None:
        """Let the rows that are done leave; returns the clean block that the next forward has to commit, if any.

        As in the release, the block in which an answer ends is not committed, and one that ends at the cap is.
        """
        if not self.fused:
            tokens_Bn = self._keep([not row.ended for row in self.rows], tokens_Bn)
            if self.rows:
                n = self.settings.block_size
                self.body(tokens_Bn, self.position_B[:, None] + self.offset[:n], clean=n)
        tokens_Bn = self._keep([not row.done for row in self.rows], tokens_Bn)
        if self.rows:
            self.position_B = self.position_B + self.settings.block_size
        return tokens_Bn if self.fused else None

    def _keep(self, wanted: list[bool], tokens_Bn: Tensor) -> Tensor:
        """Compact the batch to the wanted rows; returns their tokens."""
        kept = [index for index, keep in enumerate(wanted) if keep]
        if len(kept) == len(wanted):
            return tokens_Bn
        self.rows = [self.rows[index] for index in kept]
        if not kept:
            return tokens_Bn[:0]
        self.body.keep_rows(kept, [row.pad for row in self.rows])
        index = torch.tensor(kept, dtype=torch.long, device=self.device)
        self.position_B = self.position_B[index]
        return tokens_Bn[index]

    def _output(self, prefill_s: float, decode_s: float, first_s: float) -> GenerationOutput:
        stats = GenerationStats(tuple(row.stats for row in self.all), self.body.forwards, prefill_s, decode_s, first_s)
        sequences = pad_sequences([row.response for row in self.all], self.settings.pad_token_id, self.device)
        return GenerationOutput(sequences, stats)


def _within(is_open_B: Tensor | None, chosen_Bn: Tensor) -> Tensor:
    """Positions of rows that are still open."""
    return chosen_Bn if is_open_B is None else chosen_Bn & is_open_B[:, None]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
