"""Refit every linear layer of a student to its teacher by least squares, without labels or gradients.

Selection keeps a weight only if both its input and its output are kept, so each layer of the student sums over half of
the teacher's inputs. The plan tells which teacher channel each student channel comes from, and the kept inputs predict
part of what the dropped ones contributed. Layer by layer and in order, with X the inputs (one row per position, in the
student as refitted so far) and Y the teacher's outputs at the student's channels, the new weights minimize

    ‖XW − Y‖² + λ ‖W − W₀‖²,    so    W = W₀ + (XᵀX + λI)⁻¹ (XᵀY − XᵀX W₀),

where W₀ are the selected weights, and λ is chosen on held-out images. A layer that writes into the residual stream gets
the target (teacher's stream after the layer) − (student's stream before it), and so also corrects the error of earlier
blocks.

This is the reconstruction of He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks" (ICCV
2017), with the selected weights as the ridge's center. Relatives: SliceGPT (arXiv:2401.15024), which rotates the
residual stream to its principal subspace before it is cut; CORP (arXiv:2602.05243) and GRAIL (arXiv:2602.23795), which
also compensate dropped channels by ridge regression in closed form.

Shape legend: B batch, C channels, S image side, L positions, D channels of a stream, I inputs and O outputs of a layer,
R rows (images times positions).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import LinearMap, TimmModel
from twinbud.recovery.channel_map import BlockPair, ChannelMap, run_blocks

RIDGES = tuple(10.0 ** (exponent / 2) for exponent in range(2, -9, -1))
"""Candidates for λ, relative to the mean diagonal element of XᵀX; the largest wins a tie."""


class RefitBatch(NamedTuple):
    """A batch of images for the refit.

    Attributes:
        images_BCSS: Normalized float32 images, on the device of the student.
        is_held_out: Whether the batch chooses the ridge; the final fit uses all batches.
    """

    images_BCSS: torch.Tensor
    is_held_out: bool


@dataclass(frozen=True)
class LayerFit:
    """How well a layer's outputs agree with the teacher's on held-out images.

    The values are slightly optimistic: earlier layers were fitted to these images too, and other images of the same
    patients may be in the fit.

    Attributes:
        layer: The layer's full name.
        before: Explained variance (R², at most 1) of the layer before the refit.
        after: Explained variance of the layer fitted to the other images.
        ridge: The member of ``RIDGES`` with the largest explained variance.
    """

    layer: str
    before: float
    after: float
    ridge: float


@torch.no_grad()
def refit_layers(
    channel_map: ChannelMap,
    refit_batches: Iterable[RefitBatch],
    *,
    bf16: bool = False,
    on_layer: Callable[[int], None] = lambda done: None,
) -> list[LayerFit]:
    """Refit the layers of a student that mix channels, in place and in order.

    The residual streams of all images and the targets of one block are in memory at once; the images are not.

    Args:
        channel_map: The student, which is changed, and its teacher.
        refit_batches: The images, iterated once; at least one batch must be held out and one must not.
        bf16: Whether the networks compute in bf16 autocast.
        on_layer: Called with the number of refitted layers after each one.

    Returns:
        One entry per layer, in order.

    Raises:
        TwinbudError: A feature of the teacher or the student is not finite.
    """
    recovery, fits = channel_map.recovery, []
    autocast = torch.autocast(channel_map.device.type, torch.bfloat16, enabled=bf16)
    streams: list[_Streams] = []
    for batch in refit_batches:
        with autocast:
            student_stream = recovery.embed(channel_map.student, batch.images_BCSS)
            streams.append(
                _Streams(student_stream, recovery.embed(channel_map.teacher, batch.images_BCSS), batch.is_held_out)
            )
    for pair in channel_map.blocks:
        linears = recovery.linear_maps(pair.student)
        with autocast:
            channels = {linear.name: _channels(channel_map, pair, linear) for linear in linears}
            for stream in streams:
                stream.targets, stream.teacher_stream = _teacher_targets(
                    channel_map, pair, linears, channels, stream.teacher_stream
                )
        for linear in linears:
            layer = pair.student.get_submodule(linear.name)
            equations = {is_held_out: NormalEquations(layer) for is_held_out in (False, True)}
            for stream in streams:
                with autocast, captured(pair.student) as student:
                    pair.student(stream.student_stream)
                targets = stream.targets.pop(linear.name)
                if linear.branch is not None:
                    targets = targets - recovery.tokens(student[linear.branch].inputs)
                equations[stream.is_held_out].add(input_rows(layer, student[linear.name].inputs), targets)
            scale = pair.student.get_parameter(linear.scale) if linear.scale else None
            fits.append(
                LayerFit(f"{pair.name}.{linear.name}", *fit_layer(layer, equations[False], equations[True], scale))
            )
            on_layer(len(fits))
        with autocast:
            for stream in streams:
                stream.student_stream = pair.student(stream.student_stream)
    return fits


def fit_layer(
    layer: nn.Module, fitted: NormalEquations, held_out: NormalEquations, scale: torch.Tensor | None = None
) -> tuple[float, float, float]:
    """Refit one layer in place: choose the ridge on held-out rows, then fit all rows with it.

    Args:
        layer: A linear layer, or a convolution whose patches do not overlap.
        fitted: Normal equations of the rows to fit.
        held_out: Normal equations of the held-out rows.
        scale: (O,) LayerScale after the layer, which does not change; outputs with scale 0 keep their weights.

    Returns:
        ``before``, ``after`` and ``ridge`` of ``LayerFit``.

    Raises:
        TwinbudError: A feature is not finite.
    """
    factor = torch.ones_like(matrix(layer)[0]) if scale is None else scale
    start = matrix(layer).double() * factor
    everything = fitted.with_rows_of(held_out)
    if not bool(torch.isfinite(everything.gram).all() & torch.isfinite(everything.power).all()):
        raise TwinbudError(
            "features of teacher or student are not finite (NaN or infinity)",
            where="--recover, least squares",
            fix="Check the teacher's weights, or use --precision float32",
        )
    explained = {ridge: held_out.explained(fitted.solve(start, ridge)) for ridge in RIDGES}
    ridge = max(explained, key=explained.__getitem__)
    put_matrix(layer, torch.where(factor == 0, matrix(layer), everything.solve(start, ridge) / factor))
    return held_out.explained(start), explained[ridge], ridge


@dataclass
class _Streams:
    """The state of one batch between blocks.

    Attributes:
        student_stream: The student's residual stream before the current block.
        teacher_stream: The teacher's residual stream before the current block, or after it once ``targets`` is set.
        is_held_out: See ``RefitBatch``.
        targets: Target outputs of those layers of the current block that are not refitted yet; each is freed on use.
    """

    student_stream: torch.Tensor
    teacher_stream: torch.Tensor
    is_held_out: bool
    targets: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])


def _channels(channel_map: ChannelMap, pair: BlockPair, linear: LinearMap) -> torch.Tensor:
    """Return the teacher's channels that are the outputs of a student's layer."""
    if linear.branch is None:
        return channel_map.output_channels(f"{pair.name}.{linear.name}")
    return channel_map.stream_channels(pair.name)


def _teacher_targets(
    channel_map: ChannelMap,
    pair: BlockPair,
    linears: Sequence[LinearMap],
    channels: Mapping[str, torch.Tensor],
    stream: torch.Tensor,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the targets (B, L, O) of a block's layers, and the teacher's residual stream after the block.

    The target of a layer that writes into the residual stream is the stream after the layer.
    """
    first, *rest = pair.teacher
    with captured(first) as teacher:
        end = first(stream)
    end = run_blocks(tuple(rest), end)
    targets: dict[str, torch.Tensor] = {}
    for linear in linears:
        if linear.branch is None:
            tokens = by_position(first.get_submodule(linear.name), teacher[linear.name].outputs)
        else:
            tokens = channel_map.recovery.tokens(teacher[linear.next_branch].inputs if linear.next_branch else end)
        targets[linear.name] = tokens[..., channels[linear.name]]
    return targets, end


class NormalEquations:
    """Accumulated XᵀX and XᵀY of one layer; products per batch in float32, sums in float64.

    Args:
        layer: A linear layer, or a convolution whose patches do not overlap.

    Attributes:
        gram: (I, I) XᵀX.
        cross: (I, O) XᵀY.
        power: (O,) sum of Y² over the rows.
        total: (O,) sum of Y over the rows.
        count: R.
    """

    def __init__(self, layer: nn.Module) -> None:
        inputs, outputs = matrix(layer).shape
        like = {"dtype": torch.float64, "device": next(layer.parameters()).device}
        self.gram = torch.zeros(inputs, inputs, **like)
        self.cross = torch.zeros(inputs, outputs, **like)
        self.power = torch.zeros(outputs, **like)
        self.total = torch.zeros(outputs, **like)
        self.count = 0

    def add(self, inputs_RI: torch.Tensor, targets: torch.Tensor) -> None:
        """Add R rows of inputs (R, I) and of targets (..., O)."""
        rows, targets = inputs_RI.float(), targets.flatten(0, -2).float()
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)[:, : len(self.gram)]
        self.gram += rows.T @ rows
        self.cross += rows.T @ targets
        self.power += targets.double().square().sum(dim=0)
        self.total += targets.double().sum(dim=0)
        self.count += len(rows)

    def with_rows_of(self, other: NormalEquations) -> NormalEquations:
        """Return the equations of the rows of both."""
        both = copy.copy(self)
        both.gram, both.cross = self.gram + other.gram, self.cross + other.cross
        both.power, both.total = self.power + other.power, self.total + other.total
        both.count = self.count + other.count
        return both

    def solve(self, start_IO: torch.Tensor, ridge: float) -> torch.Tensor:
        """Return W = W₀ + (XᵀX + λI)⁻¹ (XᵀY − XᵀX W₀), (I, O) in float64.

        Args:
            start_IO: W₀.
            ridge: λ relative to the mean diagonal element of XᵀX.
        """
        strength = ridge * self.gram.diagonal().mean() + torch.finfo(torch.float64).tiny
        damped = self.gram + strength * torch.eye(len(self.gram), dtype=torch.float64, device=self.gram.device)
        return start_IO + torch.linalg.solve(damped, self.cross - self.gram @ start_IO)

    def explained(self, weights_IO: torch.Tensor) -> float:
        """Return the explained variance R² = 1 − ‖XW − Y‖² / ‖Y − mean(Y)‖² of weights W.

        It is negative if the weights do worse than the mean, and 0 if the targets do not vary.
        """
        error = self.power - 2 * (weights_IO * self.cross).sum(dim=0)
        error += (weights_IO * (self.gram @ weights_IO)).sum(dim=0)
        variance = self.power - self.total.square() / self.count
        whole = float(variance.sum())
        return 1 - float(error.sum()) / whole if whole > 0 else 0.0


def matrix(layer: TimmModel) -> torch.Tensor:
    """Return a layer's weights as an (I, O) matrix; a bias is its last row, for an input of 1."""
    weights = layer.weight.flatten(1).T
    return weights if layer.bias is None else torch.cat([weights, layer.bias[None]])


def put_matrix(layer: TimmModel, weights_IO: torch.Tensor) -> None:
    """Write an (I, O) matrix into a layer; the inverse of ``matrix``."""
    if layer.bias is not None:
        layer.bias.copy_(weights_IO[-1])
        weights_IO = weights_IO[:-1]
    layer.weight.copy_(weights_IO.T.reshape(layer.weight.shape))


def input_rows(layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return a layer's input as (R, I), one row per position."""
    if isinstance(layer, nn.Conv2d):
        patches = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
        return patches.transpose(1, 2).flatten(0, 1)
    return inputs.flatten(0, -2)


def by_position(layer: nn.Module, outputs: torch.Tensor) -> torch.Tensor:
    """Return a layer's outputs as (B, L, O)."""
    return outputs.flatten(2).transpose(1, 2) if isinstance(layer, nn.Conv2d) else outputs.flatten(1, -2)


class Flow(NamedTuple):
    """The first input of a module, and its output."""

    inputs: torch.Tensor
    outputs: torch.Tensor


@contextmanager
def captured(block: nn.Module) -> Iterator[dict[str, Flow]]:
    """Record what passes through each module of a block, by the module's name, while the context is open."""
    found: dict[str, Flow] = {}
    hooks = [
        part.register_forward_hook(
            lambda _, inputs, outputs, name=name: found.__setitem__(name, Flow(inputs[0], outputs))
        )
        for name, part in block.named_modules()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
