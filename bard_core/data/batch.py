"""A batch: rows of tokens ready for the model, and where and how much they are supervised.

Shape suffixes: B rows, L row length, C position channels (3 for multimodal rope, else 1), P supervised positions,
T image tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bard_core.diffusion.layout import TokenTable
from bard_core.diffusion.names import NoiseName


@dataclass(frozen=True)
class Supervision:
    """Where a stream is supervised: flat indices into [B x L], targets, what stood there, noise level, weight; all [P].

    The loss is the sum of ``weight_P`` x token loss, divided by the supervised positions (token mean) or by the samples (sample
    mean) of the global batch; see ``data.batches``. ``sample_P`` indexes ``Batch.sample_ids``.
    """

    index_P: Tensor
    target_P: Tensor
    noisy_P: Tensor
    t_P: Tensor
    weight_P: Tensor
    sample_P: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> "Supervision":
        return Supervision(**{name: change(getattr(self, name)) for name in self.__dataclass_fields__})


@dataclass(frozen=True)
class Batch:
    """Rows ready for the model. ``teacher_table`` is the same tokens under the teacher's block size (distillation only).

    ``places``: where in the walk over the data its samples stand. ``patches``: its images, decoded (see ``data.pictures``).
    ``image_at_T``: where its image tokens stand, flat in [B x L], ascending.
    ``noise``: that of a stage's last steps; None: the one it began with.
    """

    input_ids_BL: Tensor
    position_ids_CBL: Tensor
    table_BL: TokenTable
    noisy: Supervision
    clean: Supervision
    images: list[bytes]
    grid_thw: list[list[int]]
    sample_ids: list[str]
    places: Sequence[int] = ()
    patches: Tensor | None = None
    image_at_T: Tensor | None = None
    noise: NoiseName | None = None
    teacher_table_BL: TokenTable | None = None
    teacher_knows_P: Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """The tensors on ``device``, without waiting for it; images and names stay."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The tensors in pinned memory, from where they reach a GPU without waiting; the data loader calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        moved: dict[str, Any] = {}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, Tensor):
                moved[name] = change(value)
            elif isinstance(value, TokenTable | Supervision):
                moved[name] = value.map(change)
        return replace(self, **moved)
