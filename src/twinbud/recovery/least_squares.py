"""Refit every linear layer of a student to its teacher by least squares, without labels or gradients.

Selection keeps a weight only if both its input and its output are kept, so each layer of the student sums over half of
the teacher's inputs. The plan tells which teacher channel each student channel comes from, and the kept inputs predict
part of what the dropped ones contributed. Layer by layer and in order, with X the inputs (one row per position, in the
student as refitted so far) and Y the teacher's outputs at the student's channels, the new weights minimize

    ‖XW − Y‖² + λ ‖W − W₀‖²,    so    W = W₀ + (XᵀX + λI)⁻¹ (XᵀY − XᵀX W₀),

where W₀ are the selected weights, and λ is chosen on held-out images. A layer that writes into the residual stream gets
the target (teacher's stream after the layer) − (student's stream before it), and so also corrects the error of earlier
blocks. A layer before a batch norm is fitted with a bias, which the norm then subtracts.

This is the reconstruction of He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks" (ICCV
2017), with the selected weights as the ridge's center. Relatives: SliceGPT (arXiv:2401.15024), which rotates the
residual stream to its principal subspace before it is cut; CORP (arXiv:2602.05243) and GRAIL (arXiv:2602.23795), which
also compensate dropped channels by ridge regression in closed form.

Shape legend: B batch, C channels, S image side, L positions, D channels of a stream, I inputs and O outputs of a layer,
R rows (images times positions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import nn

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import Branch, LinearMap, RecoverySupport, TimmModel
from twinbud.recovery.batch_norms import affine, biased
from twinbud.recovery.channel_map import BlockPair, ChannelMap, at_channels, teacher_branches
from twinbud.recovery.normal_equations import NormalEquations, by_position, fit_layer

NO_WEIGHTS: Mapping[str, torch.Tensor] = MappingProxyType({})
"""All positions count alike."""


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
    position_weights: Mapping[str, torch.Tensor] = NO_WEIGHTS,
) -> list[LayerFit]:
    """Refit the layers of a student that mix channels, in place and in order.

    The residual streams of all images and the targets of one branch are in memory at once; the images are not.

    Args:
        channel_map: The student, which is changed, and its teacher.
        refit_batches: The images, iterated once; at least one batch must be held out and one must not.
        bf16: Whether the networks compute in bf16 autocast.
        on_layer: Called with the number of refitted layers after each one.
        position_weights: For some layers, by full name, how often each position counts, (L,); see ``logit_effects``.

    Returns:
        One entry per layer, in order.

    Raises:
        TwinbudError: A feature of the teacher or the student is not finite.
    """
    recovery, fits = channel_map.recovery, list[LayerFit]()
    autocast = torch.autocast(channel_map.device.type, torch.bfloat16, enabled=bf16)
    streams: list[_Streams] = []
    for images_BCSS, is_held_out in refit_batches:
        with autocast:
            student_stream = recovery.embed(channel_map.student, images_BCSS)
            teacher_stream = recovery.embed(channel_map.teacher, images_BCSS)
        streams.append(_Streams(student_stream, teacher_stream, is_held_out))
    for pair in channel_map.blocks:
        branches = zip(recovery.branches(pair.student), teacher_branches(recovery, pair.teacher), strict=True)
        for branch, teacher_branch in branches:
            with autocast:
                for stream in streams:
                    stream.targets, stream.teacher_stream = _teacher_targets(
                        channel_map, pair, teacher_branch, stream.teacher_stream
                    )
            for linear in branch.linears:
                name = recovery.layer_name(channel_map.student, pair.name, linear.name)
                weights_L = position_weights.get(name)
                try:
                    fits.append(
                        LayerFit(name, *_refit_layer(recovery, pair, branch, linear, streams, autocast, weights_L))
                    )
                except TwinbudError as error:
                    raise error.at(f"layer {name}") from error
                on_layer(len(fits))
            with autocast:
                for stream in streams:
                    stream.student_stream = _after(recovery, pair, branch, stream)
    return fits


def _refit_layer(
    recovery: RecoverySupport,
    pair: BlockPair,
    branch: Branch,
    linear: LinearMap,
    streams: Sequence[_Streams],
    autocast: torch.autocast,
    weights_L: torch.Tensor | None,
) -> tuple[float, float, float]:
    """Refit one layer of the student; see ``fit_layer``."""
    layer = pair.student.get_submodule(linear.name)
    factors, offsets = _output_map(pair.student, linear)
    with biased(layer, pair.student.get_submodule(linear.norm) if linear.norm else None):
        equations = {is_held_out: NormalEquations(layer) for is_held_out in (False, True)}
        for stream in streams:
            with autocast:
                inputs = layer_inputs(branch.forward, layer, stream.student_stream)
                inputs = linear.to_stream_order(inputs) if linear.to_stream_order else inputs
            targets = stream.targets.pop(linear.name)
            if linear.writes and branch.has_shortcut:
                targets, stream.inputs = targets - recovery.tokens(stream.student_stream), inputs
            if offsets is not None:
                targets = targets - offsets
            equations[stream.is_held_out].add_layer(layer, inputs, targets, weights_L)
        return fit_layer(layer, equations[False], equations[True], factors)


def _output_map(block: TimmModel, linear: LinearMap) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the factors and offsets (O,) between a layer's output and what it writes; None where there are none."""
    if linear.writes and linear.norm:
        return affine(block.get_submodule(linear.norm))
    return (block.get_parameter(linear.scale) if linear.scale else None), None


def _after(recovery: RecoverySupport, pair: BlockPair, branch: Branch, stream: _Streams) -> torch.Tensor:
    """Return the student's residual stream after a branch; what comes before its last layer is not computed again."""
    inputs, stream.inputs = stream.inputs, None
    if inputs is None:
        return branch.forward(stream.student_stream)
    linear = branch.linears[-1]
    layer = pair.student.get_submodule(linear.name)
    outputs = by_position(layer, layer(inputs))
    factors, offsets = _output_map(pair.student, linear)
    outputs = outputs if factors is None else outputs * factors
    outputs = outputs if offsets is None else outputs + offsets
    return recovery.add(stream.student_stream, outputs)


@dataclass(eq=False)
class _Streams:
    """The state of one batch between branches.

    Attributes:
        student_stream: The student's residual stream before the current branch.
        teacher_stream: The teacher's residual stream before the current branch, or after it once ``targets`` is set.
        is_held_out: See ``RefitBatch``.
        targets: Target outputs of those layers of the current branch that are not refitted yet; each is freed on use.
        inputs: Inputs of the layer that writes into the stream, once it is refitted.
    """

    student_stream: torch.Tensor
    teacher_stream: torch.Tensor
    is_held_out: bool
    targets: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    inputs: torch.Tensor | None = None


def _teacher_targets(
    channel_map: ChannelMap, pair: BlockPair, branch: Branch, stream: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the targets (B, L, O) of a branch's layers, and the teacher's residual stream after the branch.

    The target of a layer that writes into the residual stream is the stream after the layer.
    """
    inner = {linear.name: pair.teacher[0].get_submodule(linear.name) for linear in branch.linears if not linear.writes}
    last = branch.linears[-1] if branch.linears else None
    if last is not None and last.name in inner and not branch.has_shortcut:  # it answers for the teacher's later blocks
        inner[last.name] = pair.teacher[-1].get_submodule(last.name)
    with recorded(inner) as traffic:
        end = branch.forward(stream)
    targets: dict[str, torch.Tensor] = {}
    for linear in branch.linears:
        if linear.writes:
            targets[linear.name] = channel_map.student_stream(pair.name, channel_map.recovery.tokens(end))
        else:
            name = channel_map.recovery.layer_name(channel_map.student, pair.name, linear.name)
            order = linear.to_stream_order or partial(by_position, inner[linear.name])
            outputs = order(traffic[linear.name].outputs)
            targets[linear.name] = at_channels(outputs, channel_map.output_channels(name))
    return targets, end


def layer_inputs(
    forward: Callable[[torch.Tensor], torch.Tensor], layer: nn.Module, stream: torch.Tensor
) -> torch.Tensor:
    """Return the input of ``layer`` while ``forward`` maps ``stream``; what comes after the layer is not computed."""

    def stop(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        raise _Reached(inputs[0])

    hook = layer.register_forward_pre_hook(stop)
    try:
        forward(stream)
    except _Reached as reached:
        return reached.inputs
    finally:
        hook.remove()
    raise AssertionError("the layer is not part of the branch")


class _Reached(Exception):  # noqa: N818 (no error: it ends a forward pass)
    """A forward pass has reached the layer whose input is wanted."""

    def __init__(self, inputs: torch.Tensor) -> None:
        super().__init__()
        self.inputs = inputs


class Traffic(NamedTuple):
    """What passes through a layer: its first input and its output."""

    inputs: torch.Tensor
    outputs: torch.Tensor


@contextmanager
def recorded(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Traffic]]:
    """Record what passes through some layers, by name, while the context is open."""
    found: dict[str, Traffic] = {}

    def record(name: str, _: nn.Module, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> None:
        found[name] = Traffic(inputs[0], outputs)

    hooks = [layer.register_forward_hook(partial(record, name)) for name, layer in layers.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
