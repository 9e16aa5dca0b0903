"""Block-diffusion decoding: prefill once, then denoise block after block against a cache written in place.

``schedule="fused"`` (default) lets the clean pass of a block ride with the first denoising step of the next block, in one
forward under a 2 x 2 block mask: the same ids as ``schedule="paper"`` (a commit forward of its own after every block), with one
forward a block fewer.

Shape suffixes: B rows, L prompt length (left-padded), S block size, V vocabulary.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from bard_core.decoding import policies
from bard_core.decoding.cache import BlockCache
from bard_core.decoding.output import DecodingStats, GenerationOutput, trim
from bard_core.models.vlm import backbone, bard_settings

VISIBLE = "bard_visible"


def _attend_to_all(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """SDPA that sees every key unless a mask says otherwise, with grouped key-value heads left as they are."""
    scale = kwargs.get("scaling")
    grouped = query.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(VISIBLE, _attend_to_all)


@contextmanager
def visible_attention(model: Any) -> Iterator[None]:
    """Without a mask the stock text backbone is causal; inside this context it sees every key."""
    configs = [model.config.get_text_config()]
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = VISIBLE
    try:
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation


def end_token_ids(model: Any, eos_token_id: int | list[int] | None) -> list[int]:
    """The ids that end an answer: the argument, else the model's generation defaults, else its config's."""
    found = eos_token_id
    if found is None:
        found = getattr(model.generation_config, "eos_token_id", None)
    if found is None:
        found = getattr(model.config.get_text_config(), "eos_token_id", None)
    if found is None:
        raise ValueError("no end token: pass eos_token_id, the model's generation config has none")
    return list(found) if isinstance(found, list | tuple) else [int(found)]


@torch.inference_mode()
def generate(
    model: Any,
    inputs: Mapping[str, Tensor],
    *,
    block_size: int | None = None,
    denoising_steps: int | None = None,
    strategy: policies.Strategy = "dynamic",
    confidence_threshold: float = 0.9,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    mask_token_id: int | None = None,
    eos_token_id: int | list[int] | None = None,
    schedule: Literal["fused", "paper"] = "fused",
) -> GenerationOutput:
    """Decode a batch of prompts.

    Args:
        inputs: what the Hugging Face processor returns, left-padded: ``input_ids`` [B, L], ``attention_mask`` [B, L], and with
            images ``pixel_values``, ``image_grid_thw``.
        block_size, mask_token_id: None: as the model's config records.
        denoising_steps: steps a block at most; None: the block size.
        confidence_threshold: for "dynamic"; a probability.
        temperature: 0 is greedy; above, tokens are sampled with ``seed``.

    Returns:
        :class:`GenerationOutput`; each row ends on its own.

    Raises:
        ValueError: an argument is out of range, or no mask or end token is known, or a prompt is right-padded.
    """
    settings = bard_settings(model)
    size = settings.block_size if block_size is None else block_size
    mask_id = settings.mask_token_id if mask_token_id is None else mask_token_id
    steps = size if denoising_steps is None else denoising_steps
    _check(size, steps, strategy, confidence_threshold, max_new_tokens, temperature, mask_id, schedule)
    ends = end_token_ids(model, eos_token_id)
    policy = (
        policies.static(size, steps) if strategy == "static" else policies.dynamic(size, steps, confidence_threshold)
    )
    decoder = _Decoder(model, inputs, size, int(mask_id or 0), max_new_tokens, settings.clean_attention, temperature, seed)
    started = time.perf_counter()
    with visible_attention(model):
        decoder.prefill(inputs)
        ready = time.perf_counter()
        decoder.run(policy, ends, fused=schedule == "fused")
    done = time.perf_counter()
    sequences, real = trim(decoder.answers, ends, ends[0], max_new_tokens)
    stats = DecodingStats(real, decoder.forwards, decoder.steps, ready - started, done - ready)
    return GenerationOutput(sequences, stats)


def _check(
    size: int, steps: int, strategy: str, threshold: float, tokens: int, temperature: float, mask_id: int | None, schedule: str
) -> None:
    if mask_id is None:
        raise ValueError("no mask token: pass mask_token_id, or convert the model (its config records none)")
    if size < 1 or not 1 <= steps <= size:
        raise ValueError(f"block_size {size} and denoising_steps {steps}: need 1 <= denoising_steps <= block_size")
    if strategy not in ("static", "dynamic"):
        raise ValueError(f"strategy must be 'static' or 'dynamic', got {strategy!r}")
    if schedule not in ("fused", "paper"):
        raise ValueError(f"schedule must be 'fused' or 'paper', got {schedule!r}")
    if not 0 < threshold <= 1:
        raise ValueError(f"confidence_threshold must be in (0, 1], got {threshold}")
    if tokens < 1 or temperature < 0:
        raise ValueError(f"max_new_tokens {tokens} must be at least 1 and temperature {temperature} at least 0")


class _Decoder:
    """The state of one batch: cache, answers, counts, and which rows are still going."""

    def __init__(
        self,
        model: Any,
        inputs: Mapping[str, Tensor],
        size: int,
        mask_id: int,
        max_new_tokens: int,
        clean_attention: str,
        temperature: float,
        seed: int,
    ) -> None:
        ids = inputs["input_ids"]
        self.model, self.size, self.mask_id = model, size, mask_id
        self.clean_attention, self.temperature = clean_attention, temperature
        self.device = ids.device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.num_blocks = -(-max_new_tokens // size)
        rows, length = ids.shape
        if length == 0:
            raise ValueError("the prompt is empty: it needs at least one token, e.g. the chat template's header")
        self.visible_BL = inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones_like(ids).bool()
        if not bool(self.visible_BL[:, -1].all()):
            raise ValueError("prompts must be padded on the left: set tokenizer.padding_side = 'left'")
        self.padded = not bool(self.visible_BL.all())
        self.cache = BlockCache(model.config.get_text_config().num_hidden_layers, length + self.num_blocks * size)
        self.answers = torch.full((rows, self.num_blocks * size), mask_id, device=self.device)
        self.forwards, self.steps = [0] * rows, [[] for _ in range(rows)]

    def prefill(self, inputs: Mapping[str, Tensor]) -> None:
        """Images and prompt in one forward without logits; prompt blocks count from each row's first token."""
        ids, visible = inputs["input_ids"], self.visible_BL
        order = visible.long().cumsum(-1) - 1
        group = order if self.clean_attention == "causal" else order // self.size
        mask = (group[:, None, :] <= group[:, :, None]) & visible[:, None, :]
        mask.diagonal(dim1=-2, dim2=-1).fill_(True)
        body = backbone(self.model)
        extra = {k: inputs[k] for k in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw") if k in inputs}
        positions = order.clamp(min=0)
        if hasattr(body, "get_rope_index"):
            grids = {k: v for k, v in extra.items() if k.endswith("grid_thw")}
            types = (ids == self.model.config.image_token_id).int() + 2 * (ids == self.model.config.video_token_id).int()
            positions, _ = body.get_rope_index(ids, mm_token_type_ids=types, attention_mask=visible.long(), **grids)
        body(
            input_ids=ids, attention_mask=mask[:, None], position_ids=positions, past_key_values=self.cache, use_cache=True, **extra
        )
        self.cache.commit(ids.shape[1])
        last = positions.reshape(-1, *ids.shape).amax(dim=(0, 2)) if positions.ndim == 3 else positions.amax(-1)
        self.next_position_B = last + 1
        self.position_channels = positions.shape[0] if positions.ndim == 3 else 0

    def run(self, policy: policies.Policy, ends: list[int], fused: bool) -> None:
        """Denoise blocks until every row has ended; a finished row leaves the batch."""
        rows = torch.arange(self.answers.shape[0], device=self.device)
        end_ids = torch.tensor(ends, device=self.device)
        clean: Tensor | None = None
        for block in range(self.num_blocks):
            noisy = torch.full((len(rows), self.size), self.mask_id, device=self.device)
            self._denoise(noisy, clean, block, rows.tolist(), policy)
            self.answers[rows, block * self.size : (block + 1) * self.size] = noisy
            going = ~torch.isin(noisy, end_ids).any(1)
            if block + 1 == self.num_blocks or not bool(going.any()):
                return
            clean = noisy
            if not bool(going.all()):
                rows, clean = rows[going], noisy[going]
                self.cache.keep_rows(going)
                self.visible_BL, self.next_position_B = self.visible_BL[going], self.next_position_B[going]
            if not fused:
                self._forward(clean, block, 0)
                self.cache.commit(self.size)
                self._count(rows.tolist())
                clean = None

    def _denoise(self, noisy: Tensor, clean: Tensor | None, block: int, rows: list[int], policy: policies.Policy) -> None:
        """Fill ``noisy`` [B, S] in place; the first forward also commits the block before, when ``clean`` is given."""
        masked = torch.ones_like(noisy, dtype=torch.bool)
        active, step, taken = list(range(len(rows))), 0, [0] * len(rows)
        while active:
            if clean is not None:
                hidden = self._forward(torch.cat([clean, noisy], dim=1), block - 1, self.size)[:, self.size :]
                self.cache.commit(self.size)
                clean = None
            else:
                hidden = self._forward(noisy, block, 0)
            tokens, confidence = self._choose(self.model.lm_head(hidden))
            fill = policy(confidence, masked, step)
            noisy[fill] = tokens[fill]
            masked &= ~fill
            step += 1
            self._count([rows[i] for i in active])
            for i in active:
                taken[i] += 1
            open_rows = masked.any(1).tolist()
            active = [i for i in active if open_rows[i]]
        for i, row in enumerate(rows):
            self.steps[row].append(taken[i])

    def _forward(self, ids: Tensor, block: int, split: int) -> Tensor:
        """Hidden states [B, n, D] of ``ids`` from the start of ``block``; with ``split``, the first part cannot see the second."""
        start = self.next_position_B[:, None] + block * self.size
        positions = start + torch.arange(ids.shape[1], device=self.device)
        if self.position_channels:
            positions = positions[None].expand(self.position_channels, -1, -1)
        out = backbone(self.model)(
            input_ids=ids, attention_mask=self._mask(ids.shape[1], split), position_ids=positions, past_key_values=self.cache
        )
        return out.last_hidden_state

    def _mask(self, queries: int, split: int) -> Tensor | None:
        """Boolean [B, 1, queries, keys], or None where every key is visible."""
        if not self.padded and not split:
            return None
        prompt = self.visible_BL.shape[1]
        keys = self.cache.layers[0].committed + queries
        mask = torch.ones(self.visible_BL.shape[0], 1, queries, keys, dtype=torch.bool, device=self.device)
        mask[..., :prompt] = self.visible_BL[:, None, None, :]
        mask[:, :, :split, keys - queries + split :] = False
        return mask

    def _choose(self, logits_BSV: Tensor) -> tuple[Tensor, Tensor]:
        """Proposed token and its probability at every position; never the mask token."""
        logits = logits_BSV.float()
        logits[..., self.mask_id] = -torch.inf
        if self.temperature == 0:
            best = logits.max(-1)
            return best.indices, (best.values - logits.logsumexp(-1)).exp()
        probabilities = (logits / self.temperature).softmax(-1)
        tokens = torch.multinomial(probabilities.flatten(0, 1), 1, generator=self.generator).view(logits.shape[:2])
        return tokens, probabilities.gather(-1, tokens[..., None]).squeeze(-1)

    def _count(self, rows: list[int]) -> None:
        for row in rows:
            self.forwards[row] += 1
