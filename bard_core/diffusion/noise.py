"""Noise on response blocks: mask, uniform, edit and mix, vectorised, with one noise level t a block (paper section 3.2).

t is stratified over the blocks of a sample: with n blocks, a random permutation of the n equal slices of [min_t, max_t], one
draw in each, so that bounds hold after stratification and every sample sees light and heavy noise.

    mask      a token becomes the mask token with probability t, or as the schedule says
    uniform   a token becomes a random other token with probability t
    edit      a share of 5-20 % of the tokens (growing with t) is deleted : inserted : substituted = 1 : 1 : 3, inside its block
    mix       mask with 1 - cos(pi t / 2), uniform with sin(pi t / 2) + cos(pi t / 2) - 1, clean with 1 - sin(pi t / 2)

Draws come from a generator seeded by (seed, sample id, epoch), so any step can be replayed. Everything runs on the generator's
device. Batches use the CPU: there the draws are the same on every machine, and how many positions are supervised, which sizes
all that follows, is known without waiting for a GPU.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bard_core.diffusion.names import NoiseName, NoiseSchedule
from bard_core.diffusion.schedules import complement_t, masked_share

EDIT_SHARE = (0.05, 0.20)


@dataclass(frozen=True)
class Corruption:
    """Noisy tokens [R]; t of every token's block [R]; where the loss is taken [R]."""

    noisy_R: Tensor
    t_R: Tensor
    loss_mask_R: Tensor


def generator_for(seed: int, sample_id: str, epoch: int) -> torch.Generator:
    """A CPU generator that depends on (seed, sample id, epoch) alone."""
    key = hashlib.blake2b(f"{seed}\0{sample_id}\0{epoch}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)


def replacement_tokens(vocabulary_size: int, special_ids: Sequence[int]) -> Tensor:
    """Ids that random noise may draw, ascending: the vocabulary without special and image tokens [W].

    Raises:
        ValueError: fewer than two are left, so that noise could not change a token.
    """
    allowed = torch.ones(vocabulary_size, dtype=torch.bool)
    allowed[[i for i in special_ids if i < vocabulary_size]] = False
    replacements = allowed.nonzero().squeeze(-1)
    if len(replacements) < 2:
        raise ValueError(f"of {vocabulary_size} tokens only {len(replacements)} may be drawn as noise; check the special tokens")
    return replacements


def stratified_t(num_blocks: int, min_t: float, max_t: float, generator: torch.Generator, power: float = 1.0) -> Tensor:
    """One t a block [num_blocks], a draw in each of ``num_blocks`` equal slices of [min_t, max_t], in random order.

    ``power``: of the uniform draw before it is stretched over the range; the slices are then equally likely and not equally wide.
    """
    slots = torch.randperm(num_blocks, generator=generator, device=generator.device)
    within = torch.rand(num_blocks, generator=generator, device=generator.device)
    if power != 1.0:
        return (min_t + (max_t - min_t) * ((slots + within) / max(num_blocks, 1)) ** power).clamp(min_t, max_t)
    return (min_t + (max_t - min_t) * (slots + within) / max(num_blocks, 1)).clamp(min_t, max_t)


def mix_probabilities(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(mask, uniform, clean) probabilities of the mixed scheduler at noise level t; they sum to 1."""
    angle = t * (math.pi / 2)
    return 1 - torch.cos(angle), torch.sin(angle) + torch.cos(angle) - 1, 1 - torch.sin(angle)


def corrupt(
    target_R: Tensor,
    block_R: Tensor,
    *,
    name: NoiseName,
    min_t: float,
    max_t: float,
    mask_token_id: int,
    replacements_W: Tensor,
    generator: torch.Generator,
    t_power: float = 1.0,
    schedule: NoiseSchedule = "linear",
) -> Corruption:
    """Corrupt the noisy stream of one sample.

    Args:
        target_R: clean tokens [R]. block_R: their blocks [R], non-decreasing.
        replacements_W: token ids that random noise may draw (no special or image tokens), ascending, at least two [W].
        generator: source of every draw, on the device of the tensors.
        t_power: see ``stratified_t``.

    Returns:
        A :class:`Corruption`. The loss is on masked tokens for ``mask``; on every token for the others, where the model must
        also tell which tokens are wrong.

    Raises:
        ValueError: an unknown name.
    """
    _, index_R = torch.unique_consecutive(block_R, return_inverse=True)
    num_blocks = int(index_R[-1]) + 1 if index_R.numel() else 0
    t_R = stratified_t(num_blocks, min_t, max_t, generator, t_power)[index_R]
    draw_R = torch.rand(target_R.shape, generator=generator, device=generator.device)
    everywhere = torch.ones_like(target_R, dtype=torch.bool)
    if name == "mask":
        masked = draw_R < masked_share(t_R, schedule)
        return Corruption(torch.where(masked, mask_token_id, target_R), t_R, masked)
    if name == "uniform":
        noisy = torch.where(draw_R < t_R, _random_other(target_R, replacements_W, generator), target_R)
        return Corruption(noisy, t_R, everywhere)
    if name == "mix":
        p_mask, p_uniform, _ = mix_probabilities(t_R)
        noisy = torch.where(draw_R < p_mask + p_uniform, _random_other(target_R, replacements_W, generator), target_R)
        return Corruption(torch.where(draw_R < p_mask, mask_token_id, noisy), t_R, everywhere)
    if name == "edit":
        return Corruption(_edit(target_R, index_R, t_R, replacements_W, generator), t_R, everywhere)
    raise ValueError(f"noise must be one of mask, uniform, edit, mix; got {name!r}")


def complement(corruption: Corruption, target_R: Tensor, mask_token_id: int, schedule: NoiseSchedule = "linear") -> Corruption:
    """The complementary mask: what was masked is shown and what was shown is masked, at the noise level of the other share."""
    masked = ~corruption.loss_mask_R
    return Corruption(
        torch.where(masked, mask_token_id, target_R), complement_t(corruption.t_R, schedule).clamp(min=1e-3), masked
    )


def _random_other(target_R: Tensor, replacements_W: Tensor, generator: torch.Generator) -> Tensor:
    """A uniform draw from the replacements without the token itself."""
    place_R = torch.searchsorted(replacements_W, target_R).clamp(max=len(replacements_W) - 1)
    is_one_R = replacements_W[place_R] == target_R
    draw_R = torch.rand(target_R.shape, generator=generator, device=generator.device, dtype=torch.float64)
    pick_R = (draw_R * (len(replacements_W) - is_one_R.long())).long()
    return replacements_W[pick_R + (is_one_R & (pick_R >= place_R))]


def _edit(target_R: Tensor, index_R: Tensor, t_R: Tensor, replacements_W: Tensor, generator: torch.Generator) -> Tensor:
    """Delete, insert and substitute inside blocks: deletion pulls the rest of the block left, insertion pushes it right."""
    length = target_R.numel()
    share = EDIT_SHARE[0] + (EDIT_SHARE[1] - EDIT_SHARE[0]) * t_R
    device = generator.device
    draw = torch.rand(length, generator=generator, device=device)
    delete, insert, substitute = (
        draw < share / 5,
        (draw >= share / 5) & (draw < share * 2 / 5),
        (draw >= share * 2 / 5) & (draw < share),
    )
    fresh = _random_other(target_R, replacements_W, generator)
    # Each token's copies: 0 when deleted, 2 (a random one, then itself) when inserted before, else 1.
    copies = 1 - delete.long() + insert.long()
    emitted = torch.where(substitute, fresh, target_R).repeat_interleave(copies)
    owner = torch.arange(length, device=device).repeat_interleave(copies)
    first = torch.ones_like(owner, dtype=torch.bool)
    first[1:] = owner[1:] != owner[:-1]
    emitted = torch.where(first & insert[owner], fresh[owner], emitted)
    # Put what each block emitted into its own slots: surplus falls off its end, gaps are filled with random tokens.
    noisy, block_of = fresh.clone(), index_R[owner]
    num_blocks = int(index_R[-1]) + 1 if length else 0
    sizes = torch.bincount(index_R, minlength=num_blocks)
    starts = sizes.cumsum(0) - sizes
    emitted_sizes = torch.bincount(block_of, minlength=num_blocks)
    rank = torch.arange(len(owner), device=device) - (emitted_sizes.cumsum(0) - emitted_sizes)[block_of]
    fits = rank < sizes[block_of]
    noisy[(starts[block_of] + rank)[fits]] = emitted[fits]
    return noisy
