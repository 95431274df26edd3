"""Named widths: the index sets that the tensors of a network share.

A sub-network is a valid network only if every tensor that runs along a width is selected at the same indices. A family
therefore names, for each dimension of each tensor, the width that it runs along; selection chooses indices once
per width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from twinbud.config.schema import Attention

Role = Literal["weight", "position", "relative-position", "patch", "layer-scale", "prefix-token", "classifier"]
"""How selection treats a tensor. ``weight`` is selected and nothing else; ``position`` is resampled to the student's
grid, ``relative-position`` to its attention window, ``patch`` to its patch size; ``layer-scale`` may be absent on
either side; ``prefix-token`` is a class, register or distillation token; ``classifier`` is always new."""

WITHIN = "within"
"""Kind of the widths along which all heads of a layer keep the same channels."""


@dataclass(frozen=True)
class Axis:
    """One dimension of a tensor, running along a named width.

    Attributes:
        width: The width's name, ``KIND`` or ``KIND/LAYER`` ("residual", "mlp/blocks.3").
        copies: Number of equal parts that are stacked along the dimension and indexed alike (3 in a fused qkv).
        unit: Number of neighboring elements per index.
        head_size: Neighboring elements that form one attention head; None for a width that is not attention's.
        num_heads: Number of heads in each copy, where the channels inside every head may be indexed alike.
    """

    width: str
    copies: int = 1
    unit: int = 1
    head_size: int | None = None
    num_heads: int | None = None

    @property
    def kind(self) -> str:
        """The name's part before the slash; widths of one kind and size share a random permutation."""
        return self.width.partition("/")[0]

    def size(self, length: int) -> int:
        """Return the width's size in a tensor whose dimension has ``length`` elements."""
        return length // (self.copies * self.unit)

    def positions(self, indices: Sequence[int], size: int) -> list[int]:
        """Return the positions along the dimension that belong to ``indices`` of a width of ``size``."""
        return [
            (copy * size + index) * self.unit + offset
            for copy in range(self.copies)
            for index in indices
            for offset in range(self.unit)
        ]

    def by_heads(self) -> Axis:
        """Return the same axis with one index per attention head; unchanged where it has no heads."""
        if self.head_size is None:
            return self
        where = self.width.partition("/")[2]
        return replace(self, width=f"heads/{where}", unit=self.head_size, head_size=None, num_heads=None)

    def within_heads(self) -> Axis:
        """Return the same axis with one index per channel of a head, for all heads; unchanged where it has no heads."""
        if self.num_heads is None:
            return self
        where = self.width.partition("/")[2]
        copies = self.copies * self.num_heads
        return replace(self, width=f"{WITHIN}/{where}", copies=copies, head_size=None, num_heads=None)


@dataclass(frozen=True)
class Concatenation:
    """One dimension in which several widths follow one another, as the features of a DenseNet do.

    Attributes:
        parts: The axes in order; a number stands for elements that are kept whole.
    """

    parts: tuple[Axis | int, ...]

    def by_heads(self) -> Concatenation:
        """See ``Axis.by_heads``."""
        return Concatenation(tuple(part if isinstance(part, int) else part.by_heads() for part in self.parts))


ChosenIndices = Callable[[Axis], tuple[Sequence[int], int]]
"""Returns the indices of an axis's width, and the width's size."""


@dataclass(frozen=True)
class TensorSpec:
    """What selection needs to know about one tensor.

    Attributes:
        axes: One entry per dimension; None for a dimension that is kept whole (kernels, color channels).
        role: How selection treats the tensor.
        layer: The name of the repeated layer that it belongs to ("blocks.11"), or None.
    """

    axes: tuple[Axis | Concatenation | None, ...]
    role: Role = "weight"
    layer: str | None = None

    @property
    def fixed_dimensions(self) -> tuple[int, ...]:
        """The dimensions in which teacher and student must agree: neither selected nor resampled."""
        whole = [dimension for dimension, axis in enumerate(self.axes) if axis is None]
        resampled = whole if self.depends_on_image_size else [2, 3] if self.role == "patch" else []
        return tuple(dimension for dimension in whole if dimension not in resampled)

    @property
    def depends_on_image_size(self) -> bool:
        """Whether the tensor is resampled when the image size is known."""
        return self.role in ("position", "relative-position")

    def widths(self) -> Iterator[tuple[int, Axis]]:
        """Yield each dimension that runs along a width, with its axis; one with several widths, once for each."""
        for dimension, axis in enumerate(self.axes):
            parts = axis.parts if isinstance(axis, Concatenation) else (axis,)
            yield from ((dimension, part) for part in parts if isinstance(part, Axis))

    def shape(self, whole: Sequence[int], sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape for widths of the given sizes; dimensions without a width are those of ``whole``."""
        return tuple(
            length if axis is None else _length(axis, sizes) for length, axis in zip(whole, self.axes, strict=True)
        )

    def place(self, name: str, dimension: int, axis: Axis) -> str:
        """Return how ``plan.json`` spells one width of one dimension of the tensor ``name``."""
        place = f"{name}[{dimension}]"
        return place if self.axes[dimension] == axis else f"{place} {axis.width}"

    def select(self, tensor: torch.Tensor, dimension: int, chosen: ChosenIndices) -> torch.Tensor:
        """Return the elements of ``tensor`` along one dimension that belong to the chosen indices of its widths."""
        axis = self.axes[dimension]
        if axis is None:
            return tensor
        positions: list[int] = []
        start = 0
        for part in axis.parts if isinstance(axis, Concatenation) else (axis,):
            if isinstance(part, int):
                positions += range(start, start + part)
                start += part
            else:
                indices, size = chosen(part)
                positions += [start + position for position in part.positions(indices, size)]
                start += part.copies * size * part.unit
        assert start == tensor.shape[dimension], f"the widths of dimension {dimension} have {start} elements"
        return tensor.index_select(dimension, torch.tensor(positions, device=tensor.device))


def _length(axis: Axis | Concatenation, sizes: Mapping[str, int]) -> int:
    parts = axis.parts if isinstance(axis, Concatenation) else (axis,)
    return sum(part if isinstance(part, int) else part.copies * sizes[part.width] * part.unit for part in parts)


def width_sizes(specs: Mapping[str, TensorSpec], state: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return the number of indices of each width that the tensors of ``state`` run along.

    A dimension with several widths does not tell their sizes; each of them has tensors of its own that do.
    """
    return {
        axis.width: axis.size(state[name].shape[dimension])
        for name, spec in specs.items()
        for dimension, axis in enumerate(spec.axes)
        if isinstance(axis, Axis)
    }


def index_attention(specs: Mapping[str, TensorSpec], attention: Attention) -> dict[str, TensorSpec]:
    """Index attention widths by element (``interleaved``), by whole heads, or by the channels that all heads share."""
    if attention == "interleaved":
        return dict(specs)

    def indexed(axis: Axis | Concatenation | None) -> Axis | Concatenation | None:
        if attention == "heads" or not isinstance(axis, Axis):
            return axis and axis.by_heads()
        return axis.within_heads()

    return {name: replace(spec, axes=tuple(map(indexed, spec.axes))) for name, spec in specs.items()}


def divided_sizes(specs: Mapping[str, TensorSpec], state: Mapping[str, torch.Tensor], divisor: int) -> dict[str, int]:
    """Return the size of each width divided by ``divisor``, rounded down, but at least 1."""
    return {width: max(1, size // divisor) for width, size in width_sizes(specs, state).items()}
