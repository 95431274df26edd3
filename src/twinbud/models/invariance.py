"""Proof that tensors share a width: permuting it in all of them leaves the network's output unchanged.

A map of widths is right exactly if this holds for every width, and fails once any tensor is left out of it. A freshly
initialized network proves little, since most of its norms and biases are constant: ``randomize`` first.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from twinbud.core.rng import numpy_stream
from twinbud.models.families.base import State, TimmModel
from twinbud.models.widths import TensorSpec

TOLERANCE = 1e-9
"""Largest relative change of a float64 output that counts as rounding."""


def randomize(model: TimmModel, seed: int = 0) -> TimmModel:
    """Fill every parameter and floating buffer of ``model.state_dict()`` and convert the model to float64, in place.

    Values are N(0, 0.2), those of matrices and kernels at most N(0, 1/√fan-in), so that deep networks neither saturate
    nor overflow; running variances are 0.5 + u² with u standard normal.

    Returns:
        The model, in evaluation mode.
    """
    model.double().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            values = torch.from_numpy(numpy_stream("proof", seed, name).standard_normal(tuple(tensor.shape)))
            if name.endswith("running_var"):
                tensor.copy_(0.5 + values**2)
            else:
                fan_in = tensor[0].numel() if tensor.dim() > 1 else 1
                tensor.copy_(values * min(0.2, fan_in**-0.5))
    return model


def width_sizes(specs: Mapping[str, TensorSpec], state: State) -> dict[str, int]:
    """Return the number of indices of each width that the tensors of ``state`` run along."""
    return {
        axis.width: axis.size(state[name].shape[dimension])
        for name, spec in specs.items()
        for dimension, axis in enumerate(spec.axes)
        if axis is not None
    }


def permute(
    state: State, specs: Mapping[str, TensorSpec], width: str, order: tuple[int, ...], *, leave_out: str | None = None
) -> State:
    """Return ``state`` with the indices of one width in another order.

    Args:
        state: Tensors by name.
        specs: The widths along which they run.
        width: The width to permute.
        order: A permutation of its indices: the new index i is the old ``order[i]``.
        leave_out: Name of a tensor that is not permuted, as if it were missing in the map.
    """
    result = dict(state)
    for name, spec in specs.items():
        for dimension, axis in enumerate(spec.axes):
            if axis is not None and axis.width == width and name != leave_out:
                positions = torch.tensor(axis.positions(order, len(order)))
                result[name] = result[name].index_select(dimension, positions)
    return result


def relative_change(
    model: TimmModel,
    specs: Mapping[str, TensorSpec],
    width: str,
    images_BCSS: torch.Tensor,
    *,
    leave_out: str | None = None,
    seed: int = 0,
) -> float:
    """Return how far a permutation of one width changes the output of a randomized model.

    Args:
        model: The network, as ``randomize`` returns it; unchanged afterwards.
        specs: The widths along which its tensors run.
        width: The width to permute, at random and with no index in its place. Where the axes know attention heads,
            each head stays and its channels are permuted; ``index_attention`` gives the specs for whole heads.
        images_BCSS: Input, float64.
        leave_out: See ``permute``.
        seed: Seed of the permutation.

    Returns:
        The largest absolute change over the largest absolute output.
    """
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    size = width_sizes(specs, state)[width]
    head_sizes = {axis.head_size for spec in specs.values() for axis in spec.axes if axis and axis.width == width}
    head_size = head_sizes.pop() or size
    inside = _derangement(head_size, seed)
    order = tuple(first + index for first in range(0, size, head_size) for index in inside)
    with torch.no_grad():
        expected = model(images_BCSS)
        model.load_state_dict(permute(state, specs, width, order, leave_out=leave_out))
        try:
            found = model(images_BCSS)
        finally:
            model.load_state_dict(state)
    return float((found - expected).abs().max() / expected.abs().max())


def _derangement(size: int, seed: int) -> tuple[int, ...]:
    """Return a permutation without fixed points (of one index: that index): a shuffled order, rotated by one."""
    order = numpy_stream("proof", seed, size).permutation(size)
    result = [0] * size
    for place, index in enumerate(order):
        result[index] = int(order[(place + 1) % size])
    return tuple(result)
