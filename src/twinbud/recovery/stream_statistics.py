"""Second moments of a teacher's residual stream, and the importance of its heads and neurons, on unlabelled images.

Shape legend: B batch, L tokens, R rows (images times tokens), D channels of the stream, O outputs of a layer, G heads
or neurons, U channels of each (the head size, or 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from twinbud.models.families.base import SelectionFamily, TimmModel
from twinbud.models.widths import Axis, index_attention
from twinbud.recovery.least_squares import RefitBatch
from twinbud.recovery.normal_equations import gram_matrix, not_finite


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamStatistics:
    """What a subspace of the residual stream depends on.

    Attributes:
        moments: For each LayerNorm that reads the stream, (D, D) float64: the mean over tokens of x̂ᵀx̂, where x̂ (1, D)
            is the stream with mean 0 and variance 1 over its channels, before gain and bias.
        importance: For each width of heads or neurons, (G,) float64: the root mean square over tokens of the length of
            what each of them adds to the stream.
    """

    moments: dict[str, torch.Tensor]
    importance: dict[str, torch.Tensor]

    @property
    def pooled(self) -> torch.Tensor:
        """(D, D) float64, the mean of the moments over the norms."""
        return torch.stack([*self.moments.values()]).mean(dim=0)


@torch.no_grad()
def measure_stream(
    teacher: TimmModel, family: SelectionFamily, refit_batches: Iterable[RefitBatch], *, bf16: bool = False
) -> StreamStatistics:
    """Measure a teacher in one pass over the images.

    Args:
        teacher: A network in evaluation mode, on the device of the images.
        family: Its family.
        refit_batches: The images, iterated once.
        bf16: Whether the teacher computes in bf16 autocast.

    Raises:
        TwinbudError: A feature is not finite; see also ``RecoverySupport.stream_norms``.
    """
    with StreamMeters(teacher, family) as meters:
        for images_BCSS, _ in refit_batches:
            with torch.autocast(images_BCSS.device.type, torch.bfloat16, enabled=bf16):
                teacher.forward_head(teacher.forward_features(images_BCSS), pre_logits=True)
    return meters.statistics


class StreamMeters(ExitStack):
    """Measures a teacher in every forward pass that it takes while the context is open.

    Args:
        teacher: See ``measure_stream``.
        family: Its family.

    Raises:
        TwinbudError: See ``RecoverySupport.stream_norms``.
    """

    def __init__(self, teacher: TimmModel, family: SelectionFamily) -> None:
        super().__init__()
        norms = family.require_recovery().stream_norms(teacher)
        self._norms = {name: self._meter(teacher.get_submodule(name), _normalized_moments) for name in norms}
        self._writers: dict[str, tuple[_Mean, torch.Tensor]] = {}
        for writer in stream_writers(teacher, family):
            weight_OGU = writer.weight.detach().double().unflatten(1, (-1, writer.inputs.unit))
            meter = self._meter(writer.layer, _grouped_moments(writer.inputs.unit))
            self._writers[writer.inputs.width] = meter, weight_OGU

    @property
    def statistics(self) -> StreamStatistics:
        """The means over all forward passes; at least one must have been taken.

        Raises:
            TwinbudError: A feature is not finite.
        """
        found = StreamStatistics(
            moments={name: meter.value for name, meter in self._norms.items()},
            importance={name: _lengths(meter.value, weight_OGU) for name, (meter, weight_OGU) in self._writers.items()},
        )
        if not all(torch.isfinite(part).all() for part in (*found.moments.values(), *found.importance.values())):
            raise not_finite("teacher")
        return found

    def _meter(self, module: nn.Module, sums: Callable[[torch.Tensor], torch.Tensor]) -> _Mean:
        meter = _Mean(sums)
        self.callback(module.register_forward_pre_hook(meter.add).remove)
        return meter


class StreamWriter(NamedTuple):
    """A layer whose outputs are added to the stream.

    Attributes:
        layer: The layer.
        weight: (O, I), LayerScale included.
        inputs: The width along which its inputs run: heads or neurons.
    """

    layer: nn.Module
    weight: torch.Tensor
    inputs: Axis


def stream_writers(teacher: TimmModel, family: SelectionFamily) -> Iterator[StreamWriter]:
    """Yield the layers of all blocks that write into the stream, in order."""
    specs = index_attention(family.specs(teacher), "heads")
    for name, block in family.blocks(teacher).items():
        for linear in family.require_recovery().linear_maps(block):
            if linear.writes:
                scale = block.get_parameter(linear.scale)[:, None] if linear.scale else 1.0
                inputs = specs[f"{name}.{linear.name}.weight"].axes[1]
                assert isinstance(inputs, Axis), f"the inputs of {name}.{linear.name} run along no width"
                weight = block.get_parameter(f"{linear.name}.weight") * scale
                yield StreamWriter(block.get_submodule(linear.name), weight, inputs)


class _Mean:
    """The mean over rows of a function of a module's inputs, which sums it over the rows of one batch."""

    def __init__(self, sums: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.sums, self.total, self.count = sums, torch.zeros(()), 0

    @property
    def value(self) -> torch.Tensor:
        """The mean, in float64."""
        return self.total / self.count

    def add(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Add the rows of one forward pass; a hook."""
        rows = inputs[0].detach().flatten(0, -2)
        with torch.autocast(rows.device.type, enabled=False):
            sums = self.sums(rows.float()).double()
        self.total = sums if self.count == 0 else self.total + sums
        self.count += len(rows)


def _normalized_moments(rows_RD: torch.Tensor) -> torch.Tensor:
    """Return the sum of x̂ᵀx̂, (D, D)."""
    return gram_matrix(F.layer_norm(rows_RD, rows_RD.shape[-1:], eps=1e-6))


def _grouped_moments(unit: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from rows (R, G·U) to the sum of the second moments within each group, (G, U, U)."""

    def moments(rows: torch.Tensor) -> torch.Tensor:
        if unit == 1:
            return rows.square().sum(dim=0)[:, None, None]
        groups_GRU = rows.unflatten(1, (-1, unit)).transpose(0, 1)
        return groups_GRU.transpose(1, 2) @ groups_GRU

    return moments


def _lengths(moments_GUU: torch.Tensor, weight_OGU: torch.Tensor) -> torch.Tensor:
    """Return the root mean square length of each group's output, (G,): tr(W M Wᵀ) is the mean of ‖W a‖²."""
    products_GUU = torch.einsum("ogu,ogv->guv", weight_OGU, weight_OGU)
    return (moments_GUU * products_GUU).sum(dim=(1, 2)).clamp_min(0).sqrt()
