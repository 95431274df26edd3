"""What an error inside a teacher changes in its logits: gradients on unlabelled images.

The subspace and least squares of recovery spare what varies most, and most of that the classifier never sees: it reads
the class token, and of that the directions that tell the classes apart. An error e at a feature f changes the logits z
by J e, with the Jacobian J = ∂z/∂f, and adds about e Jᵀ H J eᵀ / 2 to the divergence of the class probabilities from
the teacher's, where H is its curvature: diag(p) − pᵀp for p = softmax(z/τ). ``Task.curvature`` is a scalar of z and
standard normal noise whose gradient has the covariance H. One backward pass of it gives g = ∂/∂f with

    E[(g·e)²] = e Jᵀ H J eᵀ,

so that second moments of g say how much an error costs: G = E[gᵀg] for the directions of the normalized stream, E‖g‖²
for a position, E[(a·g)²] for a head or neuron with output a. The last is the importance of Molchanov et al.
("Importance Estimation for Neural Network Pruning", CVPR 2019); Hsu et al. (ICLR 2022, arXiv:2207.00112) weight
low-rank approximations by the Fisher information.

Shape legend: B batch, K classes, L positions, R rows (images times positions), D channels of the stream, G heads or
neurons, U channels of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from twinbud.core.rng import numpy_stream
from twinbud.models.families.base import SelectionFamily, TimmModel
from twinbud.recovery.least_squares import RefitBatch
from twinbud.recovery.normal_equations import gram_matrix
from twinbud.recovery.stream_statistics import StreamMeters, StreamStatistics, stream_writers
from twinbud.tasks.base import Task

_MAX_POSITIONS = 2048
"""Positions, of all images together, of one backward pass: its memory is proportional to them."""
_TEMPERATURE = 4.0
"""τ: at 1, images that the teacher is sure of would not count."""
EVEN_SHARE = 0.3
"""Share of a weight that does not depend on gradients: the last block would ignore all patches."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LogitEffects:
    """Second moments of the gradients, over all images.

    Attributes:
        stream: What the same forward pass says of the stream.
        moments: (D, D) float64, the sum over rows and norms of ‖g‖² x̂ᵀx̂, where x̂ is the normalized stream before gain
            and bias, and g its gradient.
        gradients: (D, D) float64, the sum of gᵀg over the same rows.
        importance: For each width of heads or neurons, (G,) float64: the sum over rows of (a·g)².
        position_weights: For each layer that least squares refits, by full name, (L,) float32 of mean 1: how much an
            error at each position of its output counts.
    """

    stream: StreamStatistics
    moments: torch.Tensor
    gradients: torch.Tensor
    importance: Mapping[str, torch.Tensor]
    position_weights: Mapping[str, torch.Tensor]


def measure_effects(
    teacher: TimmModel,
    family: SelectionFamily,
    refit_batches: Iterable[RefitBatch],
    *,
    task: Task,
    num_positions: int,
    seed: int,
    bf16: bool = False,
) -> LogitEffects:
    """Measure a teacher in one forward and backward pass over the images.

    Args:
        teacher: A network with a classifier, in evaluation mode, on the device of the images.
        family: Its family.
        refit_batches: The images, iterated once; at least one.
        task: What the logits mean.
        num_positions: L.
        seed: Seed of ε.
        bf16: Whether the teacher computes in bf16 autocast.

    Raises:
        TwinbudError: A feature is not finite; see also ``RecoverySupport.stream_norms``.
    """
    sums, generator = _Sums(teacher, family), numpy_stream("recovery", seed, "logits")
    size = max(1, _MAX_POSITIONS // num_positions)
    with StreamMeters(teacher, family) as meters:
        for images_BCSS in (images for batch in refit_batches for images in batch.images_BCSS.split(size)):
            with sums.recorded() as recorded, torch.enable_grad():
                with torch.autocast(images_BCSS.device.type, torch.bfloat16, enabled=bf16):
                    logits_BK = teacher(images_BCSS.clone().requires_grad_()).float()
                noise_BK = torch.from_numpy(generator.standard_normal(logits_BK.shape)).to(logits_BK)
                curvature = task.curvature(logits_BK, noise_BK, _TEMPERATURE)
                gradients = torch.autograd.grad(curvature, list(recorded.features.values()))
            sums.add(recorded, dict(zip(recorded.features, gradients, strict=True)))
    return LogitEffects(
        stream=meters.statistics,
        moments=sums.moments,
        gradients=sums.gradients,
        importance=sums.importance,
        position_weights={name: _position_weights(squares_L) for name, squares_L in sums.positions.items()},
    )


def _position_weights(squares_L: torch.Tensor) -> torch.Tensor:
    """Return weights of mean 1, part even and part proportional to the squared gradients."""
    relative_L = squares_L / squares_L.mean().clamp_min(torch.finfo(torch.float64).tiny)
    return (EVEN_SHARE + (1 - EVEN_SHARE) * relative_L).float()


@dataclass(frozen=True, eq=False)
class _Recorded:
    """What one forward pass computed, by name.

    Attributes:
        features: Outputs of norms and layers, and inputs of writers, on the graph of the logits.
        streams: Inputs of norms.
    """

    features: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    streams: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])


class _Sums:
    """Sums over rows of products of features and their gradients; the attributes are those of ``LogitEffects``."""

    def __init__(self, teacher: TimmModel, family: SelectionFamily) -> None:
        recovery = family.require_recovery()
        self.norms = {name: teacher.get_submodule(name) for name in recovery.stream_norms(teacher)}
        self.layers = {
            f"{name}.{linear.name}": block.get_submodule(linear.name)
            for name, block in family.blocks(teacher).items()
            for linear in recovery.linear_maps(block)
        }
        self.writers = {writer.inputs.width: writer for writer in stream_writers(teacher, family)}
        self.moments = self.gradients = torch.zeros(())
        self.importance: dict[str, torch.Tensor] = {}
        self.positions: dict[str, torch.Tensor] = {}

    @contextmanager
    def recorded(self) -> Iterator[_Recorded]:
        """Record features while the context is open."""
        found = _Recorded()

        def norm(name: str, _: nn.Module, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> None:
            found.streams[name], found.features[name] = inputs[0].detach(), outputs

        def layer(name: str, _: nn.Module, __: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> None:
            found.features[name] = outputs

        def writer(name: str, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            found.features[name] = inputs[0]

        hooks = [
            *(module.register_forward_hook(partial(norm, name)) for name, module in self.norms.items()),
            *(module.register_forward_hook(partial(layer, name)) for name, module in self.layers.items()),
            *(each.layer.register_forward_pre_hook(partial(writer, name)) for name, each in self.writers.items()),
        ]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()

    def add(self, recorded: _Recorded, gradients: Mapping[str, torch.Tensor]) -> None:
        """Add the rows of one forward pass."""
        for name, norm in self.norms.items():
            rows_RD = recorded.streams[name].flatten(0, -2).float()
            rows_RD = F.layer_norm(rows_RD, rows_RD.shape[-1:], eps=1e-6)
            gradients_RD = gradients[name].flatten(0, -2).float() * norm.get_parameter("weight").detach()
            weighted_RD = rows_RD * gradients_RD.norm(dim=1, keepdim=True)
            self.moments = self.moments + gram_matrix(weighted_RD).double()
            self.gradients = self.gradients + gram_matrix(gradients_RD).double()
        for name in self.layers:
            self._sum(self.positions, name, gradients[name].float().square().sum(dim=(0, 2)))
        for name, writer in self.writers.items():
            products = recorded.features[name].detach().float() * gradients[name].float()
            effects_BLG = products.unflatten(2, (-1, writer.inputs.unit)).sum(dim=3)
            self._sum(self.importance, name, effects_BLG.square().sum(dim=(0, 1)))

    @staticmethod
    def _sum(sums: dict[str, torch.Tensor], name: str, part: torch.Tensor) -> None:
        sums[name] = sums[name] + part.double() if name in sums else part.double()
