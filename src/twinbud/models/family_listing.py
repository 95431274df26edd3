"""Which families of networks weights can be selected from, and the widths of one network."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from twinbud.config.schema import Family
from twinbud.models.discovery.family import NUM_CLASSES, discover, prove_widths
from twinbud.models.families.base import SelectionFamily, TimmModel
from twinbud.models.families.registry import FAMILIES, family_of
from twinbud.models.narrowing import build_network
from twinbud.models.student_spec import read_student_spec
from twinbud.models.teacher import read_teacher_info
from twinbud.models.widths import width_sizes


@dataclass(frozen=True, kw_only=True)
class PairInfo:
    """A teacher and a student that can be selected from it.

    Attributes:
        teacher, student: As the settings spell them.
        teacher_parameters, student_parameters: Number of parameters, without classifier.
        num_widths: Number of named widths of the student.
        num_disjoint: How many of them are wide enough for two disjoint subsets (2 m ≤ n).
    """

    teacher: str
    student: str
    teacher_parameters: int
    student_parameters: int
    num_widths: int
    num_disjoint: int


@dataclass(frozen=True, kw_only=True)
class FamilyInfo:
    """A described family.

    Attributes:
        name: The family's name.
        members: Its name, and those of its variants.
        recovery: Whether ``--recover`` can refit its students.
        pairs: Examples, those of the paper among them.
    """

    name: str
    members: str
    recovery: bool
    pairs: tuple[PairInfo, ...]

    def to_json(self) -> dict[str, Any]:
        """Return all facts in plain types."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class WidthInfo:
    """One named width.

    Attributes:
        name: The width's name.
        size: Number of its indices.
        places: Each dimension that runs along it, ``TENSOR[DIMENSION]``, with ``×COPIES`` and ``·UNIT`` where not 1.
    """

    name: str
    size: int
    places: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class NetworkWidths:
    """The widths of one network.

    Attributes:
        network: As the setting ``teacher`` spells it.
        family: Name of the family.
        choice: Whether the widths are described, or found.
        num_parameters: Without classifier.
        widths: All widths.
        whole: Tensors along no width, which are kept whole; the classifier is always new.
        relative_change: How far a permutation of all widths changes the output in float64: rounding, at most 1e-9.
    """

    network: str
    family: str
    choice: Family
    num_parameters: int
    widths: tuple[WidthInfo, ...]
    whole: tuple[str, ...]
    relative_change: float

    def to_json(self) -> dict[str, Any]:
        """Return all facts in plain types."""
        return asdict(self)


def list_families() -> tuple[FamilyInfo, ...]:
    """Return the described families with examples; no weights are opened."""
    return tuple(
        FamilyInfo(
            name=family.name,
            members=family.members,
            recovery=family.recovery is not None,
            pairs=tuple(_describe_pair(family, *pair) for pair in family.pairs),
        )
        for family in FAMILIES
    )


def list_widths(network: str, choice: Family = "described") -> NetworkWidths:
    """Return the widths of a network and prove them, on random weights of its full size.

    Args:
        network: As the setting ``teacher`` spells it; its weights are not opened.
        choice: "described", or "auto" to find the widths.

    Raises:
        TwinbudError: The network is unknown or of no described family, or a width cannot be proved.
    """
    info = read_teacher_info(network, "NAME")
    template = info.outline(num_classes=NUM_CLASSES)
    family = discover(info.architecture, info.name, info.model_args) if choice == "auto" else family_of(template)
    specs, state = family.specs(template), template.state_dict()
    places: dict[str, list[str]] = {}
    for name, spec in specs.items():
        for dimension, axis in spec.widths():
            copies = f"×{axis.copies}" if axis.copies > 1 else ""
            unit = f"·{axis.unit}" if axis.unit > 1 else ""
            places.setdefault(axis.width, []).append(f"{name}[{dimension}]{copies}{unit}")
    model = build_network(info.architecture, info.name, info.shapes, **info.model_args | {"num_classes": NUM_CLASSES})
    return NetworkWidths(
        network=info.name,
        family=family.name,
        choice=choice,
        num_parameters=_num_parameters(info.outline(num_classes=0)),
        widths=tuple(
            WidthInfo(name=name, size=size, places=tuple(places[name]))
            for name, size in width_sizes(specs, state).items()
        ),
        whole=tuple(
            name for name, spec in specs.items() if spec.axes and spec.role != "classifier" and not list(spec.widths())
        ),
        relative_change=prove_widths(family, model, info.name),
    )


def _describe_pair(family: SelectionFamily, teacher: str, student: str) -> PairInfo:
    info = read_teacher_info(teacher)
    student_spec = read_student_spec(info, student)
    whole, small = info.outline(num_classes=1), student_spec.template
    larger = width_sizes(family.specs(whole), whole.state_dict())
    sizes = width_sizes(family.specs(small), small.state_dict())
    return PairInfo(
        teacher=teacher,
        student=student,
        teacher_parameters=_num_parameters(info.outline(num_classes=0)),
        student_parameters=_num_parameters(student_spec.outline(num_classes=0)),
        num_widths=len(sizes),
        num_disjoint=sum(2 * size <= larger.get(width, 0) for width, size in sizes.items()),
    )


def _num_parameters(model: TimmModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
