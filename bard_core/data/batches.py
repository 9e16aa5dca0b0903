"""Examples to training batches: their noise, and one packed layout.

A sample's noise depends on (seed, sample id, epoch) alone, so any step can be replayed.

Shape suffixes: B rows, L row length, C position channels (3 for multimodal rope, else 1), P supervised positions, N clean
tokens, R noisy tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from bard_core.config.sections.noise import NoiseConfig
from bard_core.data.batch import Batch, Supervision
from bard_core.data.bins import Rows
from bard_core.data.examples import Example
from bard_core.diffusion.layout import CLEAN, NOISY, PADDING, SampleLayout, TokenTable, sample_layout
from bard_core.diffusion.names import Reduction
from bard_core.diffusion.noise import Corruption, complement, corrupt, generator_for

UNTAUGHT = -1  # the teacher's block of a noisy token that it has no block for


@dataclass(frozen=True)
class BatchSpec:
    """What a stage asks of its batches. ``block_size`` None: no noisy stream (autoregressive training).

    ``block_sizes``: an elastic stage's; ``block_size`` is then the largest, which bounds a sample's length. ``grow_steps``: steps
    of a run in whose equal parts the sizes join one by one, the smallest first; 0: all are drawn from the start.
    ``tail_weight``: of the tokens between an answer's end and the end of its last block. ``sample_length``: what a sample mean
    divides a noisy stream by: all of its tokens, tails included ("padded", for losses weighted by 1/t: paper eq. 4), or those
    with a loss ("supervised", for distillation's plain mean).
    """

    block_size: int | None
    noise: NoiseConfig
    mask_token_id: int
    end_token_id: int
    pad_token_id: int
    replacements_W: Tensor
    reduction: Reduction = "token_mean"
    sample_length: Literal["padded", "supervised"] = "padded"
    tail_weight: float = 0.5
    teacher_block_size: int | None = None
    block_sizes: tuple[int, ...] = ()
    grow_steps: int = 0
    seed: int = 0
    max_tokens_per_row: int = 8192
    image_token_id: int | None = None

    @property
    def copies(self) -> int:
        """Noisy copies of each turn."""
        return noisy_copies(self.block_size, self.noise)

    def at(self, step: int) -> "BatchSpec":
        """The same for one step of a run, counted from 0."""
        if not self.grow_steps:
            return self
        joined = 1 + step * len(self.block_sizes) // self.grow_steps
        return replace(self, block_sizes=self.block_sizes[:joined])

    def drawn(self, sample_id: str, epoch: int) -> int | None:
        """The sample's block size in this epoch, each of ``block_sizes`` as likely; its noise does not depend on the draw."""
        if not self.block_sizes:
            return self.block_size
        generator = generator_for(self.seed, f"{sample_id} block size", epoch)
        return self.block_sizes[int(torch.randint(len(self.block_sizes), (), generator=generator))]


def noisy_copies(block_size: int | None, noise: NoiseConfig) -> int:
    """How many noisy streams a sample has beside its clean one."""
    return 0 if block_size is None else (2 if noise.complementary else 1)


def collate(
    examples: Sequence[tuple[Example, int]],
    spec: BatchSpec,
    corruptions: Sequence[Corruption] | None = None,
    rows: Rows | None = None,
) -> Batch:
    """Lay out, corrupt and pack (example, epoch) pairs into one batch.

    ``corruptions``: each sample's noise, where it is known already; None: drawn as ``spec.noise`` says. ``rows``: the examples of
    each row, by number; None: in order, each into the first row that has room (one longer than a row has a row of its own).
    """
    known = [None] * len(examples) if corruptions is None else corruptions
    drawn = [replace(spec, block_size=spec.drawn(example.id, epoch)) for example, epoch in examples]
    pieces = [_assemble(*pick, own, noise) for pick, own, noise in zip(examples, drawn, known, strict=True)]
    sizes = [piece.ids.numel() for piece in pieces]
    rows = _first_fit(sizes, spec.max_tokens_per_row) if rows is None else rows
    length = max(sum(sizes[i] for i in row) for row in rows)
    table = torch.full((5, len(rows), length), PADDING)
    ids = torch.full((len(rows), length), spec.pad_token_id)
    positions = torch.zeros(pieces[0].positions.shape[0], len(rows), length, dtype=torch.long)
    placed = [(0, 0)] * len(pieces)  # (row, offset) of each sample
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            piece, stop = pieces[i], start + sizes[i]
            piece.table[0] = i
            ids[r, start:stop], positions[:, r, start:stop], table[:, r, start:stop] = piece.ids, piece.positions, piece.table
            placed[i], start = (r, start), stop
    order = [i for row in rows for i in row]  # images follow the tokens' order
    offsets = [row * length + start for row, start in placed]
    shape = tuple(
        (where, start, len(pick.input_ids_N), tuple(pick.turns), pick.context, own.block_size)
        for (pick, _), (where, start), own in zip(examples, placed, drawn, strict=True)
    )
    key = (length, spec.noise.complementary, shape)
    sample, position, block, role, teacher_block = table
    teacher = None
    if spec.teacher_block_size:
        named = (spec.teacher_block_size, *key)
        teacher = TokenTable(sample=sample, position=position, block=teacher_block, role=role, key=named)
    return Batch(
        input_ids_BL=ids,
        position_ids_CBL=positions,
        table_BL=TokenTable(sample=sample, position=position, block=block, role=role, key=key),
        noisy=_join([piece.noisy for piece in pieces], offsets),
        clean=_join([piece.clean for piece in pieces], offsets),
        images=[image for i in order for image in examples[i][0].images],
        grid_thw=[grid for i in order for grid in examples[i][0].grid_thw],
        image_at_T=None if spec.image_token_id is None else (ids.flatten() == spec.image_token_id).nonzero().squeeze(-1),
        sample_ids=[example.id for example, _ in examples],
        teacher_table_BL=teacher,
        teacher_knows_P=torch.cat([piece.teacher_knows for piece in pieces]) if teacher else None,
    )


def _first_fit(sizes: Sequence[int], row_tokens: int) -> Rows:
    rows: Rows = []
    room: list[int] = []
    for sample, size in enumerate(sizes):
        at = next((row for row, left in enumerate(room) if size <= left), len(rows))
        if at == len(rows):
            rows.append([])
            room.append(row_tokens)
        rows[at].append(sample)
        room[at] -= size
    return rows


@dataclass
class _Piece:
    ids: Tensor
    positions: Tensor
    table: Tensor
    noisy: Supervision
    clean: Supervision
    teacher_knows: Tensor


def _assemble(example: Example, epoch: int, spec: BatchSpec, known: Corruption | None) -> _Piece:
    """One sample: clean tokens, then the noisy copies of its turns, with supervision indices relative to the sample."""
    ids_N, clean_len = example.input_ids_N, example.input_ids_N.numel()
    positions_CN = example.position_ids_CN
    if positions_CN is None:
        raise ValueError(f"{example.id}: positions were not computed; call attach_positions(examples, model) first")
    laid_out = partial(sample_layout, clean_len, example.turns, context=example.context)
    layout = laid_out(spec.block_size or clean_len)
    target_R = ids_N[layout.source_R.clamp(max=clean_len - 1)].where(~layout.tail_R, torch.tensor(spec.end_token_id))
    streams = [] if spec.block_size is None else _noisy_streams(example, epoch, spec, known, target_R, layout.block_R)
    copies, counted = len(streams), spec.sample_length == "supervised"
    length = sum(int(noise.loss_mask_R.sum()) if counted else target_R.numel() for noise in streams)
    weight_R = _weights(spec, layout.tail_R, length)
    supervisions = []
    for number, noise in enumerate(streams):
        start = clean_len + number * target_R.numel()
        at = noise.loss_mask_R.nonzero().squeeze(-1)
        supervisions.append(_supervision(start + at, target_R[at], noise.noisy_R[at], noise.t_R[at], weight_R[at]))
    noisy = _join(supervisions, [0] * len(supervisions))
    learned = example.turns[example.context :]
    taught = torch.cat([torch.empty(0).long(), *(torch.arange(start, end) for start, end in learned)])
    weight = _weights(spec, torch.zeros_like(taught, dtype=torch.bool), taught.numel())
    clean = _supervision(taught - 1, ids_N[taught], ids_N[taught], torch.ones(taught.shape), weight)
    noisy_positions = _positions_of(layout, example.turns, positions_CN).repeat(1, copies)
    teacher = laid_out(spec.teacher_block_size) if spec.teacher_block_size else None
    taught_R = _teacher_blocks(layout, teacher)
    return _Piece(
        ids=torch.cat([ids_N, *(noise.noisy_R for noise in streams)]),
        positions=torch.cat([positions_CN, noisy_positions], dim=1),
        table=_table(layout, copies, teacher, taught_R),
        noisy=noisy,
        clean=clean,
        teacher_knows=(taught_R != UNTAUGHT).repeat(copies)[noisy.index_P - clean_len],
    )


def _noisy_streams(
    example: Example, epoch: int, spec: BatchSpec, known: Corruption | None, target_R: Tensor, block_R: Tensor
) -> list[Corruption]:
    """The noisy stream of a sample and its complement, if masks are all there is to it.

    Raises:
        ValueError: a known corruption is of another length.
    """
    noise = spec.noise
    if known is not None and known.noisy_R.shape != target_R.shape:
        raise ValueError(
            f"{example.id}: its corruption has {known.noisy_R.numel()} tokens, its turns in whole blocks of {spec.block_size} "
            f"have {target_R.numel()}"
        )
    first = known or corrupt(
        target_R,
        block_R,
        name=noise.name,
        min_t=noise.min_t,
        max_t=noise.max_t,
        mask_token_id=spec.mask_token_id,
        replacements_W=spec.replacements_W,
        generator=generator_for(spec.seed, example.id, epoch),
        t_power=noise.t_power,
        schedule=noise.schedule,
    )
    return [first, complement(first, target_R, spec.mask_token_id, noise.schedule)] if noise.complementary else [first]


def _weights(spec: BatchSpec, tail: Tensor, length: int) -> Tensor:
    """Weights of a stream's tokens: 1, or ``tail_weight`` in a tail; in a sample mean divided by the sample's ``length``.

    ``length`` counts both complementary copies, which so share one sample's weight. The clean stream has no tails; there it is
    the number of answer tokens.
    """
    weight = torch.ones(tail.shape).masked_fill(tail, spec.tail_weight)
    return weight / max(length, 1) if spec.reduction == "sample_mean" else weight


def _supervision(index: Tensor, target: Tensor, noisy: Tensor, t: Tensor, weight: Tensor) -> Supervision:
    return Supervision(index, target, noisy, t, weight, torch.zeros_like(index))


def _join(parts: Sequence[Supervision], offsets: Sequence[int]) -> Supervision:
    """Concatenate supervisions, moving each one's indices by its sample's offset and naming its sample."""
    if not parts:
        empty = torch.empty(0, dtype=torch.long)
        return Supervision(empty, empty, empty, torch.empty(0), torch.empty(0), empty)
    return Supervision(
        torch.cat([part.index_P + offset for part, offset in zip(parts, offsets, strict=True)]),
        torch.cat([part.target_P for part in parts]),
        torch.cat([part.noisy_P for part in parts]),
        torch.cat([part.t_P for part in parts]),
        torch.cat([part.weight_P for part in parts]),
        torch.cat([torch.full_like(part.index_P, i) for i, part in enumerate(parts)]),
    )


def _positions_of(layout: SampleLayout, turns: Sequence[tuple[int, int]], positions_CN: Tensor) -> Tensor:
    """Positions [C, R] of noisy tokens: those of the clean tokens they copy; a tail runs on from its turn's last token."""
    if not turns:
        return positions_CN[:, :0]
    last_R = torch.tensor([end - 1 for _, end in turns])[layout.turn_R]
    beyond_R = (layout.source_R - last_R).clamp(min=0)
    return positions_CN[:, torch.minimum(layout.source_R, last_R)] + beyond_R


def _table(layout: SampleLayout, copies: int, teacher: SampleLayout | None, taught_R: Tensor) -> Tensor:
    """Rows [5, N + copies x R]: sample (filled by the packer), position, block, role, teacher's block."""
    clean_len, noisy_len = layout.clean_block_N.numel(), layout.source_R.numel()
    role = torch.cat([torch.full((clean_len,), CLEAN), torch.arange(copies).repeat_interleave(noisy_len) + NOISY])
    block = torch.cat([layout.clean_block_N, layout.block_R.repeat(copies)])
    teacher_block = torch.cat([teacher.clean_block_N, taught_R.repeat(copies)]) if teacher else block
    position = torch.cat([torch.arange(clean_len), layout.source_R.repeat(copies)])
    return torch.stack([torch.zeros_like(role), position, block, role, teacher_block])


def _teacher_blocks(student: SampleLayout, teacher: SampleLayout | None) -> Tensor:
    """Teacher's block [R] of each of the student's noisy tokens; ``UNTAUGHT`` past the last block that the teacher has of a turn.

    There the teacher was never trained, and a number counted on from its last block would be that of a block of the next turn.
    """
    blocks = torch.full_like(student.block_R, UNTAUGHT)
    if teacher is None:
        return blocks
    for turn in student.turn_R.unique():
        theirs = teacher.block_R[teacher.turn_R == turn]
        mine = (student.turn_R == turn).nonzero().squeeze(-1)[: len(theirs)]
        blocks[mine] = theirs[: len(mine)]
    return blocks
