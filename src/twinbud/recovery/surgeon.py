"""Choose the inputs of layers whose loss the other inputs can make up for: the optimal brain surgeon, for channels.

With X the inputs of a layer (one row per position, centered), W its weights and H = (XᵀX + εI)⁻¹, removing input i and
fitting the others again changes the layer's output, summed over all rows, by

    ‖Wᵢ‖² / Hᵢᵢ,    after which    W ← W − H₍ᵢ₎ Wᵢ / Hᵢᵢ    and    H ← H − H₍ᵢ₎ H₍ᵢ₎ᵀ / Hᵢᵢ.

The input that costs least goes first, then the next one at the weights that compensate for it, until as many are left
as the student has. Importance that looks at one input alone keeps two that carry the same, and drops both halves of a
pair. This is Hassibi and Stork, "Second order derivatives for network pruning" (NIPS 1992), with the squared error of
one layer as the loss, as Frantar and Alistarh, "Optimal Brain Compression" (NeurIPS 2022), remove single weights.

Shape legend: I inputs and O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

_DAMPING = 1e-3
"""ε relative to the mean diagonal element of XᵀX."""
_BLOCK = 64
"""Inputs that are removed before the matrices are made smaller."""


class Reader(NamedTuple):
    """A layer that reads the channels to choose from.

    Attributes:
        moments: (I, I) float64, XᵀX up to a factor.
        weight: (I, O) float64, with whatever multiplies each output.
    """

    moments: torch.Tensor
    weight: torch.Tensor


def removal_order(readers: Sequence[Reader], num_kept: int) -> torch.Tensor:
    """Return when each input is removed, (I,) float64: 0 for the first one, and I for those that are kept.

    Args:
        readers: The layers that read the same I channels; the change of each counts relative to its output.
        num_kept: Inputs at which removing ends.
    """
    states = [_state(reader) for reader in readers]
    size = len(readers[0].moments)
    alive = torch.arange(size)
    removed_at = torch.full((size,), float(size), dtype=torch.float64)
    step = 0
    while len(alive) > num_kept:
        is_left = torch.ones(len(alive), dtype=torch.bool)
        for _ in range(min(_BLOCK, len(alive) - num_kept)):
            costs = torch.stack([_costs(inverse, weight) for inverse, weight in states]).sum(dim=0).cpu()
            costs[~is_left] = torch.inf
            index = int(costs.argmin())
            for inverse, weight in states:
                _remove(inverse, weight, index)
            is_left[index] = False
            removed_at[alive[index]] = step
            step += 1
        left = is_left.nonzero().flatten()
        states = [(inverse[left][:, left], weight[left]) for inverse, weight in states]
        alive = alive[left]
    return removed_at


def _state(reader: Reader) -> tuple[torch.Tensor, torch.Tensor]:
    """Return H (I, I) and W (I, O), scaled so that the layer's output has the power 1."""
    moments = reader.moments.clone()
    moments.diagonal().add_(_DAMPING * moments.diagonal().mean() + torch.finfo(moments.dtype).tiny)
    power = (reader.weight * (moments @ reader.weight)).sum()
    weight = reader.weight / power.sqrt().clamp_min(torch.finfo(moments.dtype).tiny)
    return torch.linalg.inv(moments), weight.clone()


def _costs(inverse_II: torch.Tensor, weight_IO: torch.Tensor) -> torch.Tensor:
    return weight_IO.square().sum(dim=1) / inverse_II.diagonal().clamp_min(torch.finfo(inverse_II.dtype).tiny)


def _remove(inverse_II: torch.Tensor, weight_IO: torch.Tensor, index: int) -> None:
    """Remove one input, in place; its row of H and W becomes 0."""
    column = inverse_II[:, index] / inverse_II[index, index]
    weight_IO.addr_(column, weight_IO[index].clone(), alpha=-1)
    inverse_II.addr_(column, inverse_II[index].clone(), alpha=-1)
    weight_IO[index] = 0
    inverse_II[index] = 0
    inverse_II[:, index] = 0
