"""A student whose linear bottlenecks are projections of the teacher's onto their principal subspaces.

In networks of inverted residuals (MobileNetV2, EfficientNet), the stream x (1, D) of a run of blocks is written by
convolutions with batch norms, a W x + b, and read by convolutions; no activation sees it. With C_k (D, D) the
covariance of x after block k of the run, over positions,

    C = sum over k of C_k / tr(C_k),    P (D, d): its first eigenvectors,    and the student's stream is s = xP.

A writer W (O, I), its batch norm absorbed, becomes Pᵀ diag(a) W with the bias Pᵀb in the norm; a reader W becomes W P.
Least squares starts from these weights, and corrects the constant part of what is lost in the batch norm after each
reader. Widths that 1×1 convolutions or the classifier read, such as the expansions, keep the channels that the others
make up for least: see ``surgeon``. All others keep those of the selection.

A stream that something reads channel by channel (an activation, a depthwise convolution) keeps channels.

Shape legend: B batch, D channels of the teacher's stream, d of the student's, I inputs and O outputs of a layer, R rows
(images times positions).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from twinbud.models.families.base import SelectionFamily, TimmModel
from twinbud.models.families.streams import linear_streams, stream_widths
from twinbud.models.rules import Indices
from twinbud.models.selection import PairRole, SelectionPlan
from twinbud.models.widths import Axis
from twinbud.recovery.batch_norms import affine, channel_rows
from twinbud.recovery.importance import important_indices, ranks
from twinbud.recovery.least_squares import RefitBatch
from twinbud.recovery.normal_equations import gram_matrix, not_finite
from twinbud.recovery.projection import Absorbed
from twinbud.recovery.subspace import principal_directions
from twinbud.recovery.surgeon import Reader, removal_order


@dataclass(frozen=True, kw_only=True, eq=False)
class BottleneckStatistics:
    """What the student's streams and channels depend on.

    Attributes:
        covariances: For each linear stream, C: (D, D) float64.
        readers: For each other width, the layers that read it position by position.
    """

    covariances: Mapping[str, torch.Tensor]
    readers: Mapping[str, tuple[Reader, ...]]


@dataclass(frozen=True, kw_only=True, eq=False)
class BottleneckSubspaces:
    """The subspaces of the student or the auxiliary, and the channels that go with them.

    Attributes:
        stream_maps: For each linear stream, (D, d) float32: P.
        kept: The teacher's channels along other widths.
        explained: The share of the variance inside the subspaces, mean over the streams.
    """

    stream_maps: dict[str, torch.Tensor]
    kept: dict[str, Indices]
    explained: float


@torch.no_grad()
def measure_bottlenecks(
    teacher: TimmModel, family: SelectionFamily, refit_batches: Iterable[RefitBatch], *, bf16: bool = False
) -> BottleneckStatistics:
    """Measure a teacher in one pass over the images.

    Args:
        teacher: A network in evaluation mode, on the device of the images.
        family: Its family, with linear streams.
        refit_batches: The images, iterated once.
        bf16: Whether the teacher computes in bf16 autocast.

    Raises:
        TwinbudError: A feature is not finite.
    """
    linear, widths = linear_streams(family, teacher), stream_widths(family, teacher)
    streams, readers = defaultdict[str, list[_Covariance]](list), defaultdict[str, list[_WeightedInputs]](list)
    with ExitStack() as hooks:
        for name, block in family.blocks(teacher).items():
            if widths[name] in linear:
                streams[widths[name]].append(_Covariance())
                hooks.enter_context(block.register_forward_hook(partial(_add_output, streams[widths[name]][-1])))
        for width, layer, factors in _readers(teacher, family):
            if width not in linear:
                inputs = _WeightedInputs(_Covariance(), layer, factors)
                readers[width].append(inputs)
                hooks.enter_context(layer.register_forward_pre_hook(partial(_add_input, inputs.covariance)))
        for images_BCSS, _ in refit_batches:
            with torch.autocast(images_BCSS.device.type, torch.bfloat16, enabled=bf16):
                teacher(images_BCSS)
    statistics = BottleneckStatistics(
        covariances={width: torch.stack([each.relative for each in parts]).sum(0) for width, parts in streams.items()},
        readers={width: tuple(each.reader for each in parts) for width, parts in readers.items()},
    )
    moments = (reader.moments for parts in statistics.readers.values() for reader in parts)
    if not all(torch.isfinite(matrix).all() for matrix in (*statistics.covariances.values(), *moments)):
        raise not_finite("teacher")
    return statistics


def channel_importance(
    statistics: BottleneckStatistics, plan: SelectionPlan, *, with_auxiliary: bool
) -> dict[str, torch.Tensor]:
    """Return the importance of the channels along each width that is read, (I,): the same for both networks of a pair.

    Args:
        statistics: Those of the teacher.
        plan: Gives the student's sizes.
        with_auxiliary: Whether there is an auxiliary, for which the order of all channels counts.
    """
    return {
        width: removal_order(readers, 1 if with_auxiliary else plan.widths[width].student_size)
        for width, readers in statistics.readers.items()
        if width in plan.widths  # the student may be shallower
    }


def choose_subspaces(
    statistics: BottleneckStatistics,
    importance: Mapping[str, torch.Tensor],
    plan: SelectionPlan,
    pair_role: PairRole,
    *,
    with_auxiliary: bool,
) -> BottleneckSubspaces:
    """Choose the subspaces of the student or the auxiliary.

    The student takes the first d directions of each stream and the channels that the surgeon leaves; beside an
    auxiliary, they alternate in order of importance, see ``importance.ranks``.

    Args:
        statistics: Those of the teacher.
        importance: That of ``channel_importance``.
        plan: Gives all sizes and ``swap_roles``.
        pair_role: Whose subspaces.
        with_auxiliary: Whether there is an auxiliary with weights of its own.
    """
    stream_maps, shares = dict[str, torch.Tensor](), list[float]()
    for width, covariance in statistics.covariances.items():
        if width not in plan.widths:  # the student is shallower
            continue
        size = plan.widths[width].student_size
        taken = ranks(
            len(covariance), size, pair_role=pair_role, with_auxiliary=with_auxiliary, swap_roles=plan.swap_roles
        )
        basis = principal_directions(covariance)[:, list(taken)]
        stream_maps[width] = basis.float()
        shares.append(float((basis * (covariance @ basis)).sum() / _trace(covariance)))
    return BottleneckSubspaces(
        stream_maps=stream_maps,
        kept=important_indices(importance, plan, pair_role, with_auxiliary=with_auxiliary),
        explained=math.fsum(shares) / len(shares),
    )


def absorb_batch_norms(teacher: TimmModel, family: SelectionFamily) -> Absorbed:
    """Put the batch norms that write linear streams into the weights before them."""
    recovery, linear = family.require_recovery(), linear_streams(family, teacher)
    widths = stream_widths(family, teacher)
    tensors = {name: tensor.double() for name, tensor in teacher.state_dict().items() if tensor.is_floating_point()}
    constants: dict[str, float] = {}
    for name, block in family.blocks(teacher).items():
        last = recovery.linear_maps(block)[-1]
        if widths[name] not in linear or not last.norm:
            continue
        layer, norm = (recovery.layer_name(teacher, name, part) for part in (last.name, last.norm))
        module: TimmModel = block.get_submodule(last.norm)
        factors, offsets = (part.double() for part in affine(module))
        tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"] * factors[:, None, None, None]
        assert f"{layer}.bias" not in tensors, "a convolution before a batch norm has no bias"
        tensors[f"{norm}.bias"] = offsets
        constants |= {f"{norm}.weight": math.sqrt(1 + module.eps), f"{norm}.running_mean": 0, f"{norm}.running_var": 1}
    return Absorbed(tensors=tensors, constants=constants)


def _readers(teacher: TimmModel, family: SelectionFamily) -> Iterable[tuple[str, nn.Module, torch.Tensor | None]]:
    """Yield the layers that read a width position by position: its name, the layer, and what multiplies its outputs.

    These are 1×1 convolutions and the classifier; one without weights passes its inputs on.
    """
    recovery, specs = family.require_recovery(), family.specs(teacher)
    for name, block in family.blocks(teacher).items():
        for linear in recovery.linear_maps(block):
            layer = block.get_submodule(linear.name)
            axis = specs[f"{recovery.layer_name(teacher, name, linear.name)}.weight"].axes[1]
            if isinstance(axis, Axis) and axis.copies == 1 and layer.kernel_size == (1, 1):
                yield axis.width, layer, affine(block.get_submodule(linear.norm))[0] if linear.norm else None
    *_, last = stream_widths(family, teacher).values()
    yield last, teacher.get_classifier(), None


def _trace(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.trace().clamp_min(torch.finfo(matrix.dtype).tiny)


class _Covariance:
    """The covariance of the channels over rows; products in float32 of a batch about the first row, sums in float64."""

    def __init__(self) -> None:
        self.count, self.origin, self.total, self.products = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())

    def add(self, rows_RI: torch.Tensor) -> None:
        """Add R rows."""
        with torch.autocast(rows_RI.device.type, enabled=False):
            rows = rows_RI.float()
            if self.count == 0:
                self.origin = rows[0].clone()
            rows = rows - self.origin
            self.count += len(rows)
            self.total = self.total + rows.sum(dim=0).double()
            self.products = self.products + gram_matrix(rows).double()

    @property
    def value(self) -> torch.Tensor:
        """(I, I) float64."""
        mean = self.total / self.count
        return self.products / self.count - torch.outer(mean, mean)

    @property
    def relative(self) -> torch.Tensor:
        """The covariance divided by its trace."""
        return self.value / _trace(self.value)


@dataclass(frozen=True, eq=False)
class _WeightedInputs:
    """The inputs of a layer, and what it makes of them."""

    covariance: _Covariance
    layer: TimmModel
    factors: torch.Tensor | None

    @property
    def reader(self) -> Reader:
        """What the surgeon needs."""
        moments = self.covariance.value
        if isinstance(self.layer, nn.Identity):
            return Reader(moments, torch.eye(len(moments)).to(moments))
        weight_IO = self.layer.weight.double().flatten(1).T
        return Reader(moments, weight_IO if self.factors is None else weight_IO * self.factors.double())


def _add_output(covariance: _Covariance, _: nn.Module, __: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> None:
    covariance.add(channel_rows(outputs))


def _add_input(covariance: _Covariance, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    covariance.add(channel_rows(inputs[0]))
