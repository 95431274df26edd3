"""Reconstruction: every linear layer of a student fitted to the teacher by least squares, without a gradient.

Selection keeps a weight where both its ends are kept, and drops all that came from the channels that are not: each
layer's sums lack half of their terms. But the plan says which of the teacher's channels each of the student's stands
for, and the kept inputs tell much of the dropped ones. So, layer by layer and in order, what the layer is given in the
student as it stands is regressed on what the teacher has at the same channels; a layer that writes into the residual
stream also makes up for what the blocks before it have missed. That is the reconstruction of He, Zhang and Sun,
"Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017. Here the fit is held to the selected weights,
as strongly as images that it has not seen ask for.

Shape legend: B batch, C channels, S image side, L positions, D channels of a stream, I inputs of a layer, O outputs.
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
from twinbud.recovery.channel_map import BlockPair, ChannelMap, through

RIDGES = tuple(10.0 ** (exponent / 2) for exponent in range(2, -9, -1))
"""How strongly a fit may be held to the weights before, in shares of the mean squared length of an input over all
rows; of equals the strongest is taken."""


class RefitBatch(NamedTuple):
    """A batch to learn from, or to choose the ridge by.

    Attributes:
        images_BCSS: Normalised float32 images, on the device of the student.
        is_held_out: Whether only the ridge is chosen by them, before they are learned from too.
    """

    images_BCSS: torch.Tensor
    is_held_out: bool


@dataclass(frozen=True)
class LayerFit:
    """How well a layer's outputs agree with the teacher's on views of images held out of its own fit.

    Earlier layers saw them, and they may be of patients that it saw: what is explained is a little too much.

    Attributes:
        layer: Its name.
        before: The share of their variance that is explained by the layer as it was.
        after: The same of the layer fitted to the other images.
        ridge: One of ``RIDGES``, the one that explains the most.
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
    """Fit the layers of a student that mix channels to its teacher, in place.

    The residual streams of all images are held at once, and what the teacher says inside one block; images are let go.

    Args:
        channel_map: The student, which is changed, and its teacher.
        refit_batches: The images, gone through once; at least one batch is held out, and one is not.
        bf16: Whether the networks compute in bf16 autocast.
        on_layer: Told how many layers are fitted.

    Returns:
        Each layer's fit, in order.

    Raises:
        TwinbudError: A feature of the teacher or the student is not finite.
    """
    family, fits = channel_map.family, []
    autocast = torch.autocast(channel_map.device.type, torch.bfloat16, enabled=bf16)
    streams: list[_Streams] = []
    for batch in refit_batches:
        with autocast:
            student_stream = family.embed(channel_map.student, batch.images_BCSS)
            streams.append(
                _Streams(student_stream, family.embed(channel_map.teacher, batch.images_BCSS), batch.is_held_out)
            )
    for pair in channel_map.blocks:
        linears = family.linear_maps(pair.student)
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
                if linear.begins is not None:
                    targets = targets - family.tokens(student[linear.begins].inputs)
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
    layer: nn.Module, learned: NormalEquations, held_out: NormalEquations, scale: torch.Tensor | None = None
) -> tuple[float, float, float]:
    """Put into a layer the weights that explain the most, and say what they explain of what they have not seen.

    The ridge is chosen by the held-out rows; the weights are then fitted to all of them with it.

    Args:
        layer: Changed in place.
        learned: Its equations from the rows to learn from.
        held_out: The same from the others.
        scale: (O,) LayerScale after the layer, which stays as it is; outputs that it switches off keep their weights.

    Returns:
        What ``LayerFit`` says, the name aside.

    Raises:
        TwinbudError: A feature is not finite.
    """
    factor = torch.ones_like(matrix(layer)[0]) if scale is None else scale
    start = matrix(layer).double() * factor
    everything = learned.with_rows_of(held_out)
    if not bool(torch.isfinite(everything.gram).all() & torch.isfinite(everything.power).all()):
        raise TwinbudError(
            "finite features of teacher and student",
            got="others",
            where="--recover, least squares",
            fix="Check the teacher's weights, or use --precision float32",
        )
    explained = {ridge: held_out.explained(learned.solve(start, ridge)) for ridge in RIDGES}
    ridge = max(explained, key=explained.__getitem__)
    put_matrix(layer, torch.where(factor == 0, matrix(layer), everything.solve(start, ridge) / factor))
    return held_out.explained(start), explained[ridge], ridge


@dataclass
class _Streams:
    """A batch on its way through both networks; each tensor is let go as soon as it is used.

    Attributes:
        student_stream: The student's residual stream before a block.
        teacher_stream: The teacher's, after that block once it was asked.
        is_held_out: See ``RefitBatch``.
        targets: What each layer of the block that is not fitted yet should put out.
    """

    student_stream: torch.Tensor
    teacher_stream: torch.Tensor
    is_held_out: bool
    targets: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])


def _channels(channel_map: ChannelMap, pair: BlockPair, linear: LinearMap) -> torch.Tensor:
    """Which of the teacher's channels a layer of the student puts out."""
    if linear.begins is None:
        return channel_map.output_channels(f"{pair.name}.{linear.name}")
    return channel_map.stream_channels(pair.name)


def _teacher_targets(
    channel_map: ChannelMap,
    pair: BlockPair,
    linears: Sequence[LinearMap],
    channels: Mapping[str, torch.Tensor],
    stream: torch.Tensor,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What the teacher makes of a residual stream: targets (B, L, O) of a block's layers, and the stream after it.

    The targets of a layer that writes into the residual stream are the stream after the layer.
    """
    first, *rest = pair.teacher
    with captured(first) as teacher:
        end = first(stream)
    end = through(tuple(rest), end)
    targets: dict[str, torch.Tensor] = {}
    for linear in linears:
        if linear.begins is None:
            tokens = by_position(first.get_submodule(linear.name), teacher[linear.name].outputs)
        else:
            tokens = channel_map.family.tokens(teacher[linear.ends].inputs if linear.ends else end)
        targets[linear.name] = tokens[..., channels[linear.name]]
    return targets, end


class NormalEquations:
    """Least squares for one layer: products of a batch in float32, their sums in float64.

    Args:
        layer: A linear layer, or a convolution whose patches do not overlap.
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
        """Count R rows: what the layer is given, and what it should put out."""
        rows, targets = inputs_RI.float(), targets.flatten(0, -2).float()
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)[:, : len(self.gram)]
        self.gram += rows.T @ rows
        self.cross += rows.T @ targets
        self.power += targets.double().square().sum(dim=0)
        self.total += targets.double().sum(dim=0)
        self.count += len(rows)

    def with_rows_of(self, other: NormalEquations) -> NormalEquations:
        """The equations of both."""
        both = copy.copy(self)
        both.gram, both.cross = self.gram + other.gram, self.cross + other.cross
        both.power, both.total = self.power + other.power, self.total + other.total
        both.count = self.count + other.count
        return both

    def solve(self, start_IO: torch.Tensor, ridge: float) -> torch.Tensor:
        """The (I, O) float64 weights of least squared error plus ridge times their squared distance from ``start_IO``.

        ``ridge`` is in units of the inputs' mean squared length over all rows.
        """
        strength = ridge * self.gram.diagonal().mean() + torch.finfo(torch.float64).tiny
        damped = self.gram + strength * torch.eye(len(self.gram), dtype=torch.float64, device=self.gram.device)
        return start_IO + torch.linalg.solve(damped, self.cross - self.gram @ start_IO)

    def explained(self, weights_IO: torch.Tensor) -> float:
        """The share of the targets' variance that such weights explain; below 0 where they do worse than the mean.

        0 where the targets do not vary.
        """
        error = self.power - 2 * (weights_IO * self.cross).sum(dim=0)
        error += (weights_IO * (self.gram @ weights_IO)).sum(dim=0)
        variance = self.power - self.total.square() / self.count
        whole = float(variance.sum())
        return 1 - float(error.sum()) / whole if whole > 0 else 0.0


def matrix(layer: TimmModel) -> torch.Tensor:
    """(I, O) weights of a layer as rows are multiplied with them; with a bias, the last input is 1."""
    weights = layer.weight.flatten(1).T
    return weights if layer.bias is None else torch.cat([weights, layer.bias[None]])


def put_matrix(layer: TimmModel, weights_IO: torch.Tensor) -> None:
    """The reverse of ``matrix``."""
    if layer.bias is not None:
        layer.bias.copy_(weights_IO[-1])
        weights_IO = weights_IO[:-1]
    layer.weight.copy_(weights_IO.T.reshape(layer.weight.shape))


def input_rows(layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """(R, I): what a layer multiplies, one row a position."""
    if isinstance(layer, nn.Conv2d):
        patches = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
        return patches.transpose(1, 2).flatten(0, 1)
    return inputs.flatten(0, -2)


def by_position(layer: nn.Module, outputs: torch.Tensor) -> torch.Tensor:
    """A layer's outputs as (B, L, O)."""
    return outputs.flatten(2).transpose(1, 2) if isinstance(layer, nn.Conv2d) else outputs.flatten(1, -2)


class Flow(NamedTuple):
    """What a module was given and what it made of it."""

    inputs: torch.Tensor
    outputs: torch.Tensor


@contextmanager
def captured(block: nn.Module) -> Iterator[dict[str, Flow]]:
    """What passes through each part of a block while this lasts, by the part's name."""
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
