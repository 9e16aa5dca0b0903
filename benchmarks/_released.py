"""The implementation style of the paper's released decoder, written anew as the benchmark's second opponent.

S + 1 forwards a block (S denoising steps and a commit; no commit of the block in which an answer ends), keys and values
concatenated anew in every layer and step, a dense all-true mask, for which SDPA needs the key-value heads repeated, and logits of
the whole prompt. What to accept is decided by the engine's own policies, so both give the same ids; the commit's logits, which
nobody reads, are left out in its favour.
"""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from bard_core.decoding import GenerationOutput, GenerationStats, RowStats
from bard_core.decoding.policies import make_policy
from bard_core.decoding.prompt import read_prompt
from bard_core.decoding.sampling import propose
from bard_core.decoding.settings import Options, resolve


@torch.inference_mode()
def released(model: Any, inputs: Mapping[str, Any], options: Options) -> GenerationOutput:
    """Greedy decoding of rows of equal length; a block with an end token in any row is the last one."""
    settings, prompt = resolve(model, **options), read_prompt(model, inputs)
    if len(set(prompt.lengths)) > 1:
        raise ValueError(f"the released style decodes rows of equal length, got {prompt.lengths}")
    n, eos = settings.block_size, settings.ending.eos_token_ids
    policy = make_policy(
        settings.strategy, n, settings.denoising_steps, settings.confidence_threshold, settings.entropy_bound, settings.factor
    )
    rows, length = prompt.input_ids_BL.shape
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    started = time.perf_counter()
    model(
        input_ids=prompt.input_ids_BL,
        attention_mask=prompt.mask(n, settings.clean_attention),
        position_ids=prompt.position_ids,
        past_key_values=cache,
        **prompt.images,
    )
    _wait()
    prefilled, first, forwards = time.perf_counter(), 0.0, 0
    done: list[Tensor] = []
    for block in range(-(-settings.ending.max_new_tokens // n)):
        tokens = torch.full((rows, n), settings.mask_token_id, device=prompt.input_ids_BL.device)
        positions = prompt.next_position_B[:, None] + torch.arange(block * n, (block + 1) * n, device=tokens.device)
        mask = torch.ones(rows, 1, n, length + (block + 1) * n, dtype=torch.bool, device=tokens.device)
        step = 0
        while (masked := tokens == settings.mask_token_id).any():
            call = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
            logits = model(input_ids=tokens, **call).logits.float()
            cache.crop(-n)
            proposal = propose(logits, settings.mask_token_id, with_entropy=settings.strategy == "entropy")
            tokens = torch.where(policy(proposal, masked, step), proposal.tokens, tokens)
            step += 1
        forwards += step
        done.append(tokens)
        ended = any(token in eos for row in tokens.tolist() for token in row)
        if not ended:
            if settings.clean_attention == "causal":
                mask[..., -n:] = mask[..., -n:].tril()  # the committed block is clean
            model.base_model(input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache)
            forwards += 1
        first = first or time.perf_counter() - started
        if ended:
            break
    sequences = torch.cat(done, 1)
    kept = [len(settings.ending.cut([], row)[0]) for row in sequences.tolist()]
    stats = GenerationStats(
        tuple(RowStats(tokens, forwards) for tokens in kept),
        forwards,
        prefilled - started,
        time.perf_counter() - prefilled,
        first,
    )
    return GenerationOutput(sequences[:, : max(kept)], stats)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
