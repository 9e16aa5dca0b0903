"""A prepared sample as training reads it.

Shape suffixes: N tokens, C position channels (3 for multimodal rope, else 1).
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SHAPES_KEPT = 256


@dataclass
class Example:
    """One prepared conversation. ``turns`` are assistant spans [start, end) with their end token.

    ``context``: how many of the first turns are read only; the others carry a loss.
    """

    id: str
    input_ids_N: Tensor
    turns: list[tuple[int, int]]
    images: list[bytes]
    grid_thw: list[list[int]]
    position_ids_CN: Tensor | None = field(default=None, repr=False)
    context: int = 0


def attach_positions(examples: Sequence[Example], model: Any) -> None:
    """Compute every example's position ids once, with the model's own rope index."""
    from bard_core.models.vlm import position_ids

    for example in examples:
        grid = torch.tensor(example.grid_thw) if example.grid_thw else None
        example.position_ids_CN = position_ids(model, example.input_ids_N, grid)


class Positions:
    """Position ids of conversations from a model's config alone, in any process. Conversations of one shape share an answer."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self._known: OrderedDict[Any, Tensor] = OrderedDict()
        self._model: Any = None

    def __getstate__(self) -> Any:
        return self.config

    def __setstate__(self, config: Any) -> None:
        Positions.__init__(self, config)

    def __call__(self, input_ids_N: Tensor, grid_thw: Sequence[Sequence[int]]) -> Tensor:
        """Positions [C, N], which must not be written to."""
        from bard_core.models.vlm import empty_model, position_ids, token_types

        if self._model is None:
            self._model = empty_model(self.config)
        shape = (token_types(self.config, input_ids_N).numpy().tobytes(), str(grid_thw))
        if shape not in self._known:
            grid = torch.tensor(grid_thw) if grid_thw else None
            self._known[shape] = position_ids(self._model, input_ids_N, grid)
            if len(self._known) > SHAPES_KEPT:
                self._known.popitem(last=False)
        return self._known[shape]
