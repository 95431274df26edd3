"""GRAIL and CORP: compensate pruned units by ridge regression in closed form, each layer by itself.

Both are rivals of least squares. With h (1, H) the hidden units that a layer W (O, H), b reads in the teacher, and h_S
those that the student keeps, they predict h from h_S over the images, and multiply the prediction into the weights:

    GRAIL:  h ≈ h_S Bᵀ, B = G_HS (G_SS + λI)⁻¹ with G = E[hᵀh];          W ← W B, b ← b
    CORP:   h_P ≈ h_S Bᵀ + c for the pruned units P, with covariances;   W ← W_S + W_P B, b ← b + W_P c

Ridge regression from h_S to the layer's outputs y = hWᵀ + b has the same solution, with λ‖W‖² for GRAIL and λ‖W − W_S‖²
and a free bias for CORP, so it needs the outputs at the student's channels alone. GRAIL (Tang et al., CPAL 2026,
arXiv:2602.23795) takes λ = 10⁻³ of the mean diagonal element of G_SS, as its published code does. CORP (Zhang and Yang,
2026, arXiv:2602.05243) is written from its abstract; λ is chosen on held-out images.

Decided here: both papers prune the neurons and heads of ViTs, and leave the residual stream as wide as it is. Students
of twinbud have a narrower stream, too; its readers are compensated alike, with h_S what the student's norm makes of the
teacher's stream at the kept channels. CORP also prunes, and compensates, dimensions within a head; here whole heads are
pruned, and what they add is predicted from the kept ones. Unlike in least squares, every layer is fitted to the inputs
that it would have if all others were exact, so errors of earlier blocks are not corrected.

Shape legend: B batch, L tokens, D channels of the teacher's stream, I inputs and O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from twinbud.config.recovery import RecoverMethod
from twinbud.models.families.base import Branch, TimmModel
from twinbud.recovery.channel_map import BlockPair, ChannelMap, at_channels, teacher_branches
from twinbud.recovery.least_squares import LayerFit, RefitBatch, layer_inputs, recorded
from twinbud.recovery.normal_equations import RIDGES, NormalEquations, fit_weights, matrix, put_matrix

_GRAIL_RIDGE = 1e-3


@torch.no_grad()
def compensate_layers(
    channel_map: ChannelMap,
    refit_batches: Iterable[RefitBatch],
    *,
    method: RecoverMethod,
    bf16: bool = False,
    on_layer: Callable[[int], None] = lambda done: None,
) -> list[LayerFit]:
    """Compensate the layers of a pruned student in place; the order does not matter.

    Args:
        channel_map: A student of channels, heads and neurons of its teacher, and the teacher; both ViTs.
        refit_batches: The images, iterated once; at least one batch must be held out and one must not.
        method: ``grail`` or ``corp``.
        bf16: Whether the networks compute in bf16 autocast.
        on_layer: Called with the number of compensated layers after each one.

    Returns:
        One entry per layer, in order; ``before`` is that of the student's weights on the teacher's inputs.

    Raises:
        TwinbudError: A feature is not finite.
    """
    recovery, fits = channel_map.recovery, list[LayerFit]()
    autocast = torch.autocast(channel_map.device.type, torch.bfloat16, enabled=bf16)
    streams: list[_Stream] = []
    for images_BCSS, is_held_out in refit_batches:
        with autocast:
            streams.append(_Stream(recovery.embed(channel_map.teacher, images_BCSS), is_held_out))
    for pair in channel_map.blocks:
        branches = zip(recovery.branches(pair.student), teacher_branches(recovery, pair.teacher), strict=True)
        for branch, teacher_branch in branches:
            equations = _equations(channel_map, pair, branch, teacher_branch, streams, autocast)
            for name, (fitted, held_out) in equations.items():
                fit = _compensate(pair.student.get_submodule(name), fitted, held_out, method)
                fits.append(LayerFit(f"{pair.name}.{name}", *fit))
                on_layer(len(fits))
    return fits


@dataclass(eq=False)
class _Stream:
    """The teacher's residual stream of one batch before the current branch, and whether the batch is held out."""

    tokens: torch.Tensor
    is_held_out: bool


def _equations(
    channel_map: ChannelMap,
    pair: BlockPair,
    branch: Branch,
    teacher_branch: Branch,
    streams: list[_Stream],
    autocast: torch.autocast,
) -> dict[str, tuple[NormalEquations, NormalEquations]]:
    """Move the streams past a branch, and return the equations of its layers: of the rows to fit and those held out."""
    layers = {linear.name: pair.student.get_submodule(linear.name) for linear in branch.linears}
    equations = {name: (NormalEquations(layer), NormalEquations(layer)) for name, layer in layers.items()}
    names = [linear.name for linear in teacher_branch.linears]
    for stream in streams:
        with autocast, recorded({name: pair.teacher[0].get_submodule(name) for name in names}) as traffic:
            before, stream.tokens = stream.tokens, teacher_branch.forward(stream.tokens)
        for linear, teacher_linear in zip(branch.linears, teacher_branch.linears, strict=True):
            name = f"{pair.name}.{linear.name}"
            passed = traffic[linear.name]
            if linear.writes:
                inputs = at_channels(passed.inputs, channel_map.input_channels(name))
            else:
                with autocast:
                    student_stream = channel_map.student_stream(pair.name, before)
                    inputs = layer_inputs(branch.forward, layers[linear.name], student_stream)
            outputs = at_channels(passed.outputs, channel_map.output_channels(name))
            if teacher_linear.scale and not linear.scale:  # folded into the student's weights
                scale = pair.teacher[0].get_parameter(teacher_linear.scale)
                outputs = outputs * scale[channel_map.output_channels(name)]
            equations[linear.name][stream.is_held_out].add(inputs.flatten(0, -2), outputs)
    return equations


def _compensate(
    layer: TimmModel, fitted: NormalEquations, held_out: NormalEquations, method: RecoverMethod
) -> tuple[float, float, float]:
    """Compensate one layer in place; see the head of this file."""
    before, start, ridges = held_out.explained(matrix(layer).double()), matrix(layer).double(), RIDGES
    everything = fitted.with_rows_of(held_out)
    inputs_I = torch.zeros_like(start[: layer.in_features, 0])
    targets_O = torch.zeros_like(everything.total)
    if layer.bias is not None:
        if method == "corp":
            inputs_I, targets_O = everything.gram[-1, :-1] / everything.count, everything.total / everything.count
        else:
            targets_O = layer.bias.double()
        fitted, held_out = fitted.about(inputs_I, targets_O), held_out.about(inputs_I, targets_O)
        start = start[:-1]
    if method == "grail":
        start, ridges = torch.zeros_like(start), (_GRAIL_RIDGE,)
    weights, _, after, ridge = fit_weights(start, fitted, held_out, ridges)
    if layer.bias is not None:
        weights = torch.cat([weights, (targets_O - inputs_I @ weights)[None]])
    put_matrix(layer, weights)
    return before, after, ridge
