"""Block-diffusion decoding (paper section 3.3): prefill once, then denoise one block after another against the key-value buffer.

A noisy position's logits predict that position's own token. ``schedule="paper"`` spends S denoising forwards and one commit
forward on a block; ``schedule="fused"`` gives the same tokens (but where revision would go on after the end) in S: the clean
pass of block b rides with the first denoising step of block b+1 in one forward, in which the clean half does not see the noisy
one, and the last block needs no commit.

Shape suffixes: B active rows, n block size, K visible keys.
"""

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from typing import Any, Unpack

import torch
from torch import Tensor

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
from bard_core.decoding.policies import make_policy, revise
from bard_core.decoding.prompt import Prompt, read_prompt
from bard_core.decoding.sampling import propose
from bard_core.decoding.settings import Options, Settings, resolve
from bard_core.decoding.speculative import speculate


def generate(model: Any, inputs: Mapping[str, Any], **options: Unpack[Options]) -> GenerationOutput:
    """Decode a batch of prompts; ``settings.Settings`` documents the options.

    Args:
        model: a Hugging Face model in eval mode (``bard_core.models.load``, or a stock one with ``mask_token_id`` given).
        inputs: what the processor returned, padded on either side.

    Raises:
        ValueError: an option or input is not usable; the message names it and what is allowed.
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
    return _Decode(model, prompt, settings).run()


class _Decode:
    """One batch on its way: the rows still active, their cache and what they have produced."""

    def __init__(self, model: Any, prompt: Prompt, settings: Settings) -> None:
        self.settings = settings
        self.prompt = prompt
        self.blocks = -(-settings.ending.max_new_tokens // settings.block_size)
        self.width = prompt.input_ids_BL.shape[1]
        response = self.blocks * settings.block_size
        self.body = new_body(model, len(prompt.lengths), self.width, response, settings.clean_attention, settings.compiled)
        self.device = self.body.device
        self.policy = make_policy(
            settings.strategy, settings.block_size, settings.denoising_steps,
            settings.confidence_threshold, settings.entropy_bound, settings.factor,
        )  # fmt: skip
        self.generator = torch.Generator(self.device).manual_seed(settings.seed) if settings.temperature > 0 else None
        self.eos = torch.tensor(settings.ending.eos_token_ids, device=self.device)
        count = len(prompt.lengths)
        self.rows = list(range(count))
        self.pads = prompt.pads
        self.next_position_B = prompt.next_position_B
        self.responses: list[list[int]] = [[] for _ in range(count)]
        self.steps: list[list[int]] = [[] for _ in range(count)]
        self.stats: list[RowStats | None] = [None] * count

    @torch.inference_mode()
    def run(self) -> Iterator[Event]:
        with closing(self.body):
            yield from self._run()

    def _run(self) -> Iterator[Event]:
        started = time.perf_counter()
        if self.width:
            self.body.prefill(self.prompt, self.settings.block_size)
        self.body.look_past(self.pads)
        _wait(self.device)
        prefilled = time.perf_counter()
        first = 0.0
        pending: Tensor | None = None
        for block in range(self.blocks):
            tokens_Bn, steps = yield from self._denoise(block, pending)
            if self.settings.schedule == "paper":
                self.body(tokens_Bn, self._positions(block, 1), clean=self.settings.block_size)
            event = self._finish_block(block, tokens_Bn.tolist(), steps)
            first = first or time.perf_counter() - started
            yield event
            if not self.rows:
                break
            pending = self._keep_active(tokens_Bn, event)
        yield DoneEvent(self._output(prefilled - started, time.perf_counter() - prefilled, first))

    def _denoise(self, block: int, pending_Bn: Tensor | None) -> Generator[Event, None, tuple[Tensor, list[int]]]:
        """Fill one block; returns its tokens [B, n] and each row's number of steps. One wait for the device a step."""
        settings, n = self.settings, self.settings.block_size
        tokens = torch.full((len(self.rows), n), settings.mask_token_id, device=self.device)
        masked = torch.ones_like(tokens, dtype=torch.bool)
        revisable = masked.clone() if settings.revision_threshold is not None else None
        is_open = masked[:, 0]
        steps = torch.zeros(len(self.rows), dtype=torch.long, device=self.device)
        step = 0
        while True:
            hidden = self._forward_noisy(block, tokens, pending_Bn if step == 0 else None)
            proposal = propose(
                self.body.logits(hidden), settings.mask_token_id,
                temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p, generator=self.generator,
                held=None if revisable is None else tokens, with_entropy=settings.strategy == "entropy",
            )  # fmt: skip
            revised = None
            if revisable is not None:
                assert settings.revision_threshold is not None and proposal.current is not None
                revised = revise(proposal.current, masked, revisable, settings.revision_threshold) & is_open[:, None]
                revisable = revisable & ~revised
                masked = masked | revised
            filled = self.policy(proposal, masked, step) & is_open[:, None]
            tokens = torch.where(filled, proposal.tokens, tokens)
            masked = masked & ~filled
            if revised is not None:
                tokens = tokens.masked_fill(masked, settings.mask_token_id)
            steps += is_open
            is_open = self._is_open(block, tokens, masked)
            yield StepEvent(block, step, tuple(self.rows), tokens, filled, revised, proposal.confidence)
            step += 1
            if not is_open.any():
                break
        return tokens.masked_fill(masked, settings.pad_token_id), steps.tolist()

    def _forward_noisy(self, block: int, tokens_Bn: Tensor, pending_Bn: Tensor | None) -> Tensor:
        """Hidden states [B, n, D] of the block being denoised; on the way the pending clean block enters the cache for good."""
        n = self.settings.block_size
        if pending_Bn is None:
            hidden = self.body(tokens_Bn, self._positions(block, 1))
        else:
            hidden = self.body(torch.cat([pending_Bn, tokens_Bn], 1), self._positions(block - 1, 2), clean=n)
        self.body.cache.crop(-n)
        return hidden[:, -n:]

    def _positions(self, block: int, blocks: int) -> Tensor:
        n = self.settings.block_size
        return self.next_position_B[:, None] + torch.arange(block * n, (block + blocks) * n, device=self.device)

    def _is_open(self, block: int, tokens_Bn: Tensor, masked_Bn: Tensor) -> Tensor:
        """Rows [B] whose block needs another step."""
        if self.settings.schedule == "paper":
            return masked_Bn.any(1)
        wanted = min(self.settings.block_size, self.settings.ending.max_new_tokens - block * self.settings.block_size)
        needed = masked_Bn[:, :wanted]
        if len(self.eos):
            end = (tokens_Bn[:, :wanted, None] == self.eos).any(-1)
            needed = needed & (end.cumsum(1) == 0)
        return needed.any(1)

    def _finish_block(self, block: int, tokens: list[list[int]], steps: list[int]) -> BlockEvent:
        """Cut the rows where they end; note which are done. A row is charged its own steps and commits."""
        new, finished = [], []
        for row, ids, taken in zip(self.rows, tokens, steps, strict=True):
            ids, ended = self.settings.ending.cut(self.responses[row], ids)
            self.responses[row] += ids
            self.steps[row].append(taken)
            new.append(tuple(ids))
            if ended:
                finished.append(row)
                commits = len(self.steps[row]) if self.settings.schedule == "paper" else 0
                self.stats[row] = RowStats(len(self.responses[row]), sum(self.steps[row]) + commits, tuple(self.steps[row]))
        event = BlockEvent(block, tuple(self.rows), tuple(new), tuple(finished))
        self.rows = [row for row in self.rows if self.stats[row] is None]
        return event

    def _keep_active(self, tokens_Bn: Tensor, event: BlockEvent) -> Tensor | None:
        """Drop finished rows from the batch; returns the clean block that the next forward has to commit, if any."""
        if event.finished:
            kept = [index for index, row in enumerate(event.rows) if row not in event.finished]
            self.pads = [self.pads[index] for index in kept]
            self.body.keep_rows(kept, self.pads)
            index = torch.tensor(kept, device=self.device)
            tokens_Bn, self.next_position_B = tokens_Bn[index], self.next_position_B[index]
        return tokens_Bn if self.settings.schedule == "fused" else None

    def _output(self, prefill_s: float, decode_s: float, first_s: float) -> GenerationOutput:
        stats = GenerationStats(
            tuple(row for row in self.stats if row is not None), self.body.forwards, prefill_s, decode_s, first_s
        )
        return GenerationOutput(pad_sequences(self.responses, self.settings.pad_token_id, self.device), stats)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
