"""A student's weights: those of its teacher, seen through projections of the streams and at the chosen channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from twinbud.models.families.base import SelectionFamily, State, TimmModel
from twinbud.models.selection import PairRole, SelectionPlan
from twinbud.models.widths import index_attention


@dataclass(frozen=True, kw_only=True, eq=False)
class Absorbed:
    """A teacher whose streams' gains are in the weights beside them, so that projections commute with its layers.

    Attributes:
        tensors: The tensors in float64; those that a student must draw itself are left out.
        constants: What fills the tensors that were absorbed.
    """

    tensors: State
    constants: Mapping[str, float]


def project_state(
    absorbed: Absorbed,
    stream_maps: Mapping[str, torch.Tensor],
    plan: SelectionPlan,
    student: TimmModel,
    family: SelectionFamily,
    pair_role: PairRole,
) -> State:
    """Return the student's tensors, without the classifier.

    Args:
        absorbed: The teacher.
        stream_maps: (D, d) by width of a stream; the plan's indices along these widths do not count.
        plan: Chooses along all other widths.
        student: Gives names and shapes of the tensors.
        family: The family of both.
        pair_role: Whether ``student`` is the student or the auxiliary.

    Returns:
        New float32 tensors by the student's names.
    """
    result: State = {}
    shapes = student.state_dict()
    for name, spec in index_attention(family.specs(student), plan.attention).items():
        if name in absorbed.constants:
            result[name] = torch.full_like(shapes[name], absorbed.constants[name])
            continue
        if spec.role == "classifier" or name not in absorbed.tensors:
            continue
        tensor = absorbed.tensors[name]
        for dimension, axis in spec.widths():
            if axis.width in stream_maps:
                tensor = (tensor.movedim(dimension, -1) @ stream_maps[axis.width].double()).movedim(-1, dimension)
            else:
                tensor = spec.select(tensor, dimension, plan.chosen(name, spec, dimension, pair_role))
        result[name] = tensor.float()
    return result
