"""One call of a tensor operation, and what a rule for it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from twinbud.models.discovery.dimensions import Dimension, fix, unify

Dimensions = tuple[Dimension, ...]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an operation.

    Attributes:
        arguments: All arguments in the order of the operation's schema, defaults included.
        names: Their names.
        outputs: What it returned, as a list of tensors.
        of: Returns the dimensions of a tensor among the arguments.
    """

    arguments: tuple[Any, ...]
    names: tuple[str, ...]
    outputs: list[torch.Tensor]
    of: Callable[[torch.Tensor], Dimensions]

    def dimensions(self, place: int) -> Dimensions:
        """Return the dimensions of the argument at ``place``; none for an argument that is left out."""
        tensor = self.arguments[place]
        return self.of(tensor) if isinstance(tensor, torch.Tensor) else ()

    def argument(self, name: str) -> Any:
        """Return the argument of that name; None if this form of the operation has none."""
        return self.arguments[self.names.index(name)] if name in self.names else None

    def axis(self, place: int, rank: int) -> int:
        """Return the argument at ``place``, a dimension's number, counted from the front."""
        return self.arguments[place] % max(rank, 1)


Rule = Callable[[Call], Sequence[Dimensions]]
"""Returns the dimensions of each output, in order; outputs that it leaves out are fixed."""


def elementwise(call: Call) -> Sequence[Dimensions]:
    """Broadcast all tensors against each other and make their dimensions equal."""
    tensors = [argument for argument in call.arguments if isinstance(argument, torch.Tensor)]
    return [broadcast([call.of(tensor) for tensor in tensors])]


def broadcast(operands: Sequence[Dimensions]) -> Dimensions:
    """Make the dimensions of ``operands`` equal, aligned from the last; those of size 1 fit any size."""
    rank = max((len(operand) for operand in operands), default=0)
    result: list[Dimension] = []
    for place in range(-rank, 0):
        there = [operand[place] for operand in operands if len(operand) >= -place]
        size = max(dimension.size for dimension in there)
        same = [dimension for dimension in there if dimension.size == size]
        for other in same[1:]:
            unify(same[0], other)
        result.append(same[0])
    return tuple(result)


def unknown_operation(call: Call) -> Sequence[Dimensions]:
    """Fix all dimensions of all tensors."""
    for argument in call.arguments:
        for tensor in argument if isinstance(argument, (list, tuple)) else (argument,):
            if isinstance(tensor, torch.Tensor):
                for dimension in call.of(tensor):
                    fix(dimension)
    return []
