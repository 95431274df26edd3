"""Dual-model weight selection: two different sub-networks of one teacher (paper section 3.1).

``plan_selection`` chooses indices, and ``extract_weights`` applies them. The plan lists every tensor of teacher and
student with its status.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from timm.layers.patch_embed import resample_patch_embed

from twinbud.config.schema import Attention, Rule
from twinbud.core.errors import TwinbudError, first_few
from twinbud.core.rng import numpy_stream
from twinbud.models.families.base import SelectionFamily, State, TimmModel
from twinbud.models.rules import Indices, select_indices
from twinbud.models.tensor_status import TensorStatus, student_tensor_status, teacher_tensor_status
from twinbud.models.widths import Axis, ChosenIndices, TensorSpec, index_attention

PairRole = Literal["student", "auxiliary"]
"""The student S, which is trained, or the auxiliary S′, which follows it."""
_TENSORS = ("student_tensors", "teacher_tensors")


@dataclass(frozen=True, kw_only=True)
class WidthPlan:
    """Sizes of one width in teacher and student, and the teacher's indices for student and auxiliary."""

    teacher_size: int
    student_size: int
    student_indices: Indices
    auxiliary_indices: Indices

    @property
    def overlap(self) -> int:
        """Number of indices that student and auxiliary share."""
        return len(set(self.student_indices) & set(self.auxiliary_indices))

    def of(self, pair_role: PairRole) -> Indices:
        """Return the indices of the student or the auxiliary."""
        return self.student_indices if pair_role == "student" else self.auxiliary_indices


@dataclass(frozen=True, kw_only=True)
class SelectionPlan:
    """The teacher's indices along every width.

    Attributes:
        rule: Rule of element selection.
        attention: How attention is indexed; see ``widths.index_attention``.
        seed: Seed of the random rules.
        swap_roles: Whether student and auxiliary exchange their subsets.
        widths: By the width's name; empty under ``random-inconsistent``.
        tensor_widths: Under ``random-inconsistent``, by "TENSOR[DIMENSION]".
        student_tensors: Status of each student tensor.
        teacher_tensors: Status of each teacher tensor.
    """

    rule: Rule
    attention: Attention
    seed: int
    swap_roles: bool
    widths: dict[str, WidthPlan] = field(default_factory=dict)
    tensor_widths: dict[str, WidthPlan] = field(default_factory=dict)
    student_tensors: dict[str, TensorStatus] = field(default_factory=dict)
    teacher_tensors: dict[str, TensorStatus] = field(default_factory=dict)

    def chosen(self, name: str, spec: TensorSpec, dimension: int, pair_role: PairRole) -> ChosenIndices:
        """Return the indices that student or auxiliary gets along one dimension of one tensor."""

        def indices(axis: Axis) -> tuple[Indices, int]:
            place = spec.place(name, dimension, axis)
            width = self.tensor_widths[place] if self.rule == "random-inconsistent" else self.widths[axis.width]
            return width.of(pair_role), width.teacher_size

        return indices

    def to_json(self) -> dict[str, Any]:
        """Return the plan's part of ``plan.json``."""
        content = asdict(self)
        for group in ("widths", "tensor_widths"):
            for name, width in getattr(self, group).items():
                content[group][name]["overlap"] = width.overlap
        for group in _TENSORS:
            content[group] = {name: str(status) for name, status in getattr(self, group).items()}
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> SelectionPlan:
        """Read what ``to_json`` returned.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: ``content`` is something else.
        """
        read: dict[str, Any] = {
            group: {
                name: WidthPlan(
                    teacher_size=width["teacher_size"],
                    student_size=width["student_size"],
                    student_indices=tuple(width["student_indices"]),
                    auxiliary_indices=tuple(width["auxiliary_indices"]),
                )
                for name, width in content[group].items()
            }
            for group in ("widths", "tensor_widths")
        }
        for group in _TENSORS:
            read[group] = {name: TensorStatus.parse(text) for name, text in content[group].items()}
        return cls(**{**{name: content[name] for name in cls.__dataclass_fields__}, **read})


def plan_selection(
    teacher: TimmModel,
    student: TimmModel,
    family: SelectionFamily,
    *,
    rule: Rule = "uniform",
    attention: Attention = "interleaved",
    seed: int = 0,
    swap_roles: bool = False,
    with_auxiliary: bool = True,
) -> SelectionPlan:
    """Choose the teacher's weights that student and auxiliary start with.

    Args:
        teacher: The larger network.
        student: A network of the students' architecture; only its shape is used.
        family: The family of both.
        rule: The elements of each width to take (paper section 4.6).
        attention: ``interleaved`` indexes the attention's inner width as one axis, ``heads`` by whole heads, ``within``
            by the channels of a head, the same in all heads.
        seed: Seed of the random rules.
        swap_roles: Whether student and auxiliary exchange their subsets (Table 5).
        with_auxiliary: Whether there is an auxiliary, which must then differ from the student.

    Raises:
        TwinbudError: The student is wider or deeper than the teacher, one has a part that the other lacks, every
            width is the same in both, so that student and auxiliary would be equal, or ``attention`` cannot be had.
    """
    family.check_attention(teacher, attention)
    family.check_compatible(teacher, student, attention)
    teacher_specs, student_specs = (index_attention(family.specs(model), attention) for model in (teacher, student))
    prepared, folded = _teacher_state(teacher, student, family, student_specs)
    student_tensors = student_tensor_status(student, student_specs, prepared)
    chosen = [name for name, status in student_tensors.items() if status.kind != "fresh"]
    sizes = _sizes(chosen, student_specs, prepared, student.state_dict())
    if with_auxiliary and all(size == student_size for size, student_size in sizes.values()):
        named = first_few((f"{name} {size[0]} = {size[1]}" for name, size in sizes.items()), 3)
        raise TwinbudError(
            f"all widths are equal ({named}), so student and auxiliary would be equal",
            where="--student",
            fix="Use --student half, or train without an auxiliary: --method selection",
        )
    choose = _chooser(rule, seed, swap_roles)
    widths: dict[str, WidthPlan] = {}
    tensor_widths: dict[str, WidthPlan] = {}
    if rule == "random-inconsistent":
        for name in chosen:
            for dimension, axis in student_specs[name].widths():
                place = student_specs[name].place(name, dimension, axis)
                tensor_widths[place] = choose(place, *sizes[axis.width])
    else:
        kinds = {axis.width: axis.kind for spec in student_specs.values() for _, axis in spec.widths()}
        widths = {name: choose(kinds[name], *size) for name, size in sizes.items()}
    return SelectionPlan(
        rule=rule,
        attention=attention,
        seed=seed,
        swap_roles=swap_roles,
        widths=widths,
        tensor_widths=tensor_widths,
        student_tensors=student_tensors,
        teacher_tensors=teacher_tensor_status(
            teacher, teacher_specs, _by_teacher_name(student_tensors, teacher, student, family), student_specs, folded
        ),
    )


def extract_weights(
    plan: SelectionPlan, teacher: TimmModel, student: TimmModel, family: SelectionFamily, pair_role: PairRole
) -> State:
    """Return the tensors that student or auxiliary inherits.

    What depends on the image size keeps the teacher's; ``student_pair`` resamples it when the image size is known.

    Returns:
        New float32 tensors by the student's names, without those that the plan calls fresh.
    """
    specs = index_attention(family.specs(student), plan.attention)
    prepared, _ = _teacher_state(teacher, student, family, specs)
    shapes = {name: tensor.shape for name, tensor in student.state_dict().items()}
    result: State = {}
    for name, spec in specs.items():
        status = plan.student_tensors[name]
        if status.kind == "fresh":
            continue
        tensor = prepared[name].detach()
        if status.kind == "resampled" and spec.role == "patch":  # positions wait for the image size
            tensor = resample_patch_embed(tensor, list(shapes[name][-2:]))
        for dimension in range(tensor.dim()):
            tensor = spec.select(tensor, dimension, plan.chosen(name, spec, dimension, pair_role))
        result[name] = tensor.float().clone() if tensor.is_floating_point() else tensor.clone()
    return result


def _teacher_state(
    teacher: TimmModel, student: TimmModel, family: SelectionFamily, specs: dict[str, TensorSpec]
) -> tuple[State, dict[str, str]]:
    """Return the teacher's tensors by the student's names, and what was folded; see ``fold_layer_scale``."""
    state, folded = family.fold_layer_scale(teacher.state_dict(), set(specs))
    names = family.teacher_names(teacher, student).items()
    return {name: state[source] for name, source in names if source in state}, folded


def _by_teacher_name(
    status: dict[str, TensorStatus], teacher: TimmModel, student: TimmModel, family: SelectionFamily
) -> dict[str, TensorStatus]:
    return {source: status[name] for name, source in family.teacher_names(teacher, student).items()}


def _chooser(rule: Rule, seed: int, swap_roles: bool) -> Callable[[str, int, int], WidthPlan]:
    """Return a function that plans one width, given its random stream and its sizes in teacher and student."""

    def choose(stream: str, teacher: int, student: int) -> WidthPlan:
        generator = numpy_stream("selection", seed, stream, teacher)
        first, second = select_indices(rule, teacher, student, generator)
        if swap_roles:
            first, second = second, first
        return WidthPlan(teacher_size=teacher, student_size=student, student_indices=first, auxiliary_indices=second)

    return choose


def _sizes(
    names: Iterable[str], specs: dict[str, TensorSpec], teacher: State, student: State
) -> dict[str, tuple[int, int]]:
    """Return each width's size in teacher and student, on which all tensors along it must agree."""
    sizes: dict[str, tuple[int, int]] = {}
    for name in names:
        for dimension, axis in enumerate(specs[name].axes):
            if not isinstance(axis, Axis):  # the widths of a concatenation have tensors of their own
                continue
            pair = axis.size(teacher[name].shape[dimension]), axis.size(student[name].shape[dimension])
            if pair[1] > pair[0]:
                raise TwinbudError(
                    f"the student is wider than its teacher ({axis.width}: {pair[1]}, the teacher {pair[0]})",
                    where="--student",
                    fix="Choose a smaller student or a larger teacher",
                )
            if sizes.setdefault(axis.width, pair) != pair:
                raise TwinbudError(
                    f"tensors disagree on the width {axis.width} (teacher, student): {pair} in {name},"
                    f" {sizes[axis.width]} elsewhere",
                    where="--student",
                    fix="Use --student half",
                )
    return sizes
