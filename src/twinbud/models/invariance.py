"""Proof that tensors share a width: permuting it in all of them leaves the network's output unchanged.

A map of widths is right exactly if this holds for every width, and fails once any tensor is left out of it. A freshly
initialized network proves little, since most of its norms and biases are constant: ``randomize`` first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.func import functional_call

from twinbud.core.errors import TwinbudError
from twinbud.core.rng import numpy_stream
from twinbud.models.families.base import State, TimmModel
from twinbud.models.widths import Axis, TensorSpec, index_attention, width_sizes

TOLERANCE = 1e-9
"""Largest relative change of a float64 output that counts as rounding."""
_FEW = 4
"""Indices of a width that is permuted alone too."""
_AMPLITUDES = (1.0, 1e3, 1e6)
"""Standard deviations of the images of a proof, the first that suffices."""
_CONTRAST = 1e-5
"""Smallest difference between the outputs of two images, relative to the largest output, that suffices."""


def prove(model: TimmModel, specs: Mapping[str, TensorSpec], image_size: int, where: str) -> float:
    """Check that a permutation of any width leaves the output unchanged (float64, relative error ≤ 1e-9).

    Args:
        model: The network, with any weights; they are overwritten.
        specs: The widths along which its tensors run.
        image_size: Image side in pixels.
        where: The network, for the error.

    Returns:
        The largest relative error.

    Raises:
        TwinbudError: The output changes; the error names the tensor that broke the proof.
    """
    test = PermutationTest(model, _contrasting_images(randomize(model), image_size))
    sizes, largest = width_sizes(specs, model.state_dict()), 0.0
    for own, widths in claims(specs):
        # all at once, and alone those with so few orders that two of them could undo each other
        for together in (widths, *([width] for width in sorted(widths) if sizes.get(width, 0) <= _FEW)):
            change = test.relative_change(own, together)
            if not change <= TOLERANCE:  # not a number is no proof
                raise _not_proved(test, own, widths, where)
            largest = max(largest, change)
    return largest


def _contrasting_images(model: TimmModel, image_size: int) -> torch.Tensor:
    """Return two images on which the output depends, (2, 3, S, S) float64, and calibrate the model to them.

    Networks without norms attenuate the images; stronger ones reach the output.
    """
    generator = torch.Generator().manual_seed(0)
    noise_BCSS = torch.randn(2, 3, image_size, image_size, generator=generator, dtype=torch.float64)
    images_BCSS = noise_BCSS
    for amplitude in _AMPLITUDES:
        images_BCSS = amplitude * noise_BCSS
        calibrate(model, images_BCSS)
        output_BK = _output(model, images_BCSS)
        if (output_BK[1] - output_BK[0]).abs().max() >= _CONTRAST * output_BK.abs().max():
            break
    return images_BCSS


def _not_proved(test: PermutationTest, specs: Mapping[str, TensorSpec], widths: set[str], where: str) -> TwinbudError:
    """Name the first width that changes the output by itself, and the tensor whose omission reduces the change most."""

    def change(width: str, leave_out: str | None = None) -> float:
        return test.relative_change(specs, [width], leave_out=leave_out)

    width = next((width for width in sorted(widths) if not change(width) <= TOLERANCE), min(widths))
    tensors = [name for name, spec in specs.items() if any(axis.width == width for _, axis in spec.widths())]
    changes = {name: change(width, leave_out=name) for name in tensors}
    worst = min(changes, key=lambda name: changes[name])
    return TwinbudError(
        f"the width {width} could not be proved: permuting it in {len(tensors)} tensors changes the output; '{worst}'"
        " most likely does not run along it",
        where=where,
        fix="Choose another teacher, or train this one whole with --method finetune",
    )


def randomize(model: TimmModel, seed: int = 0) -> TimmModel:
    """Fill every parameter and floating buffer of ``model.state_dict()`` and convert the model to float64, in place.

    Values are N(0, 0.2), those of matrices and kernels at most N(0, 1/√fan-in), so that deep networks neither saturate
    nor overflow; running variances are 0.5 + u² with u standard normal. Weights of batch norms are N(0, 1): a chain of
    smaller ones would leave nothing of the first layers' output.

    Returns:
        The model, in evaluation mode.
    """
    model.double().eval()
    with torch.no_grad():
        state = model.state_dict()
        for name, tensor in state.items():
            if not tensor.is_floating_point():
                continue
            values = torch.from_numpy(numpy_stream("proof", seed, name).standard_normal(tuple(tensor.shape)))
            if name.endswith("running_var"):
                tensor.copy_(0.5 + values**2)
            elif f"{name.rpartition('.')[0]}.running_var" in state and name.endswith(".weight"):
                tensor.copy_(values)
            else:
                fan_in = tensor[0].numel() if tensor.dim() > 1 else 1
                tensor.copy_(values * min(0.2, fan_in**-0.5))
    return model


@torch.no_grad()
def calibrate(model: TimmModel, images_BCSS: torch.Tensor) -> None:
    """Set the running statistics of all batch norms to those of ``images_BCSS``, in place.

    Random statistics can attenuate the images until the output hardly depends on them, and a proof would see nothing.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(images_BCSS)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def claims(specs: Mapping[str, TensorSpec]) -> Iterator[tuple[Mapping[str, TensorSpec], set[str]]]:
    """Yield the two permutation tests of a map of widths: the specs to permute by, and the widths to permute.

    First all widths, where channels stay inside their attention head; then the whole heads. A tensor with one entry for
    each head, such as a table of relative positions, follows whole heads alone.
    """
    for attention in ("interleaved", "heads"):
        own = index_attention(specs, attention)
        widths = {axis.width for spec in own.values() for _, axis in spec.widths()}
        heads = {axis.by_heads().width for spec in specs.values() for _, axis in spec.widths() if axis.head_size}
        yield own, widths - heads if attention == "interleaved" else widths & heads


def permute(
    state: State, specs: Mapping[str, TensorSpec], widths: Iterable[str], *, seed: int = 0, leave_out: str | None = None
) -> State:
    """Return ``state`` with the indices of some widths in another order, at random and with no index in its place.

    Args:
        state: Tensors by name.
        specs: The widths along which they run. Where the axes know attention heads, each head stays and its channels
            are permuted, in all heads alike; ``index_attention`` gives the specs for whole heads.
        widths: The widths to permute.
        seed: Seed of the permutations, which differ from width to width.
        leave_out: Name of a tensor that is not permuted, as if it were missing in the map.
    """
    sizes = width_sizes(specs, state)
    permuted = set(widths)

    def chosen(axis: Axis) -> tuple[Sequence[int], int]:
        size = sizes[axis.width]
        if axis.width not in permuted:
            return range(size), size
        order = _derangement(axis.width, axis.head_size or size, seed)
        return [first + index for first in range(0, size, len(order)) for index in order], size

    result = dict(state)
    for name, spec in specs.items():
        for dimension in {dimension for dimension, axis in spec.widths() if axis.width in permuted}:
            if name != leave_out:
                result[name] = spec.select(result[name], dimension, chosen)
    return result


class PermutationTest:
    """Measures how far a permutation of widths changes the output of a randomized network, which stays as it is.

    Args:
        model: The network, as ``randomize`` returns it.
        images_BCSS: Input, float64, two images at least.
    """

    def __init__(self, model: TimmModel, images_BCSS: torch.Tensor) -> None:
        self._model, self._images_BCSS = model, images_BCSS
        self._state = model.state_dict()
        self._output_BK = _output(model, images_BCSS)
        self._contrast = (self._output_BK[1:] - self._output_BK[:1]).abs().max()

    def relative_change(
        self,
        specs: Mapping[str, TensorSpec],
        widths: Iterable[str],
        *,
        seed: int = 0,
        leave_out: str | None = None,
    ) -> float:
        """Permute some widths, all at once; see ``permute`` for the arguments.

        Returns:
            The largest absolute change over the largest difference between the outputs of two images: what does not
            depend on the image, such as a bias, proves nothing.
        """
        permuted = permute(self._state, specs, widths, seed=seed, leave_out=leave_out)
        found_BK = _output(self._model, self._images_BCSS, permuted)
        return float((found_BK - self._output_BK).abs().max() / self._contrast)


@torch.no_grad()
def _output(model: TimmModel, images_BCSS: torch.Tensor, state: State | None = None) -> torch.Tensor:
    """Return the logits (B, K) of the network, with the tensors of ``state`` if it is given."""
    # some attentions keep their table of positions between two evaluations, until they are trained
    model.train().eval()
    return functional_call(model, state or {}, (images_BCSS,))


def _derangement(width: str, size: int, seed: int) -> list[int]:
    """Return a permutation without fixed points (of one index: that index): a shuffled order, rotated by one."""
    order = numpy_stream("proof", seed, width).permutation(size)
    result = [0] * size
    for place, index in enumerate(order):
        result[index] = int(order[(place + 1) % size])
    return result
