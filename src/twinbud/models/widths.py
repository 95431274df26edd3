"""Named widths: the index sets that the tensors of a network share.

A sub-network stays coherent only if every tensor that touches a width is cut at the same indices. So a
family names, for each dimension of each tensor, the width it runs along; selection then chooses indices
once a width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["weight", "position", "patch", "layer-scale", "prefix-token", "classifier"]
"""What a tensor is for: most are plain weights; the others are treated apart when they are carried over."""


@dataclass(frozen=True)
class Axis:
    """One dimension of a tensor, running along a named width.

    Attributes:
        width: The width's name, ``KIND`` or ``KIND/WHERE`` ("residual", "mlp/blocks.3").
        copies: How many equal parts are stacked along the dimension and indexed alike (3 in a fused qkv).
        unit: How many neighbouring elements one index stands for (a head's dimension, for whole heads).
    """

    width: str
    copies: int = 1
    unit: int = 1

    @property
    def kind(self) -> str:
        """What sort of width it is; widths of one kind and size share a random permutation."""
        return self.width.partition("/")[0]

    def size(self, length: int) -> int:
        """The width's size, from the length of a dimension that runs along it."""
        return length // (self.copies * self.unit)

    def positions(self, indices: tuple[int, ...], size: int) -> list[int]:
        """The positions along the dimension that ``indices`` of a width of ``size`` stand for."""
        return [
            (copy * size + index) * self.unit + offset
            for copy in range(self.copies)
            for index in indices
            for offset in range(self.unit)
        ]


@dataclass(frozen=True)
class TensorSpec:
    """What selection must know of one tensor.

    Attributes:
        axes: One entry a dimension; None where the dimension is never cut (kernels, the colour axis).
        role: What the tensor is for.
        layer: The name of the repeated layer it belongs to ("blocks.11"), or None.
    """

    axes: tuple[Axis | None, ...]
    role: Role = "weight"
    layer: str | None = None
