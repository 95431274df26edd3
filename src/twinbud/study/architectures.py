"""Depth, width and number of parameters of each pair's teacher and student (Table 1); nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twinbud.config.combinations import DIVISORS
from twinbud.models.families.base import TimmModel
from twinbud.models.families.registry import family_of
from twinbud.models.outline import count_parameters
from twinbud.models.student_spec import read_student_spec
from twinbud.models.teacher import read_teacher_info
from twinbud.study.paper import paper_numbers
from twinbud.study.recipe import Recipe

NUM_CLASSES = 4
"""Size of the classifier that the counts include: that of the paper's chest and brain sets."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network in the terms of the paper's Table 1.

    Attributes:
        pair: The pair's name in the recipe.
        role: "teacher" or "student".
        name: timm's name.
        depth: Blocks, by stage.
        width: Channels, by stage.
        heads: Attention heads, by stage.
        num_parameters: Number of parameters, with a classifier of NUM_CLASSES classes.
        paper: The number of parameters as the paper prints it.
        agrees: Whether depth, width and heads equal the paper's; None if it has no such network.
    """

    pair: str
    role: str
    name: str
    depth: str
    width: str
    heads: str
    num_parameters: int
    paper: str | None
    agrees: bool | None


def list_architectures(recipe: Recipe) -> tuple[Architecture, ...]:
    """Describe teacher and student of every pair that the recipe lists; no weights are allocated.

    Raises:
        TwinbudError: A name is unknown, or a student is of another family than its teacher.
    """
    found = []
    for name in recipe.architectures:
        pair = recipe.pairs[name]
        info = read_teacher_info(pair.teacher)
        student_spec = read_student_spec(info, pair.student)
        teacher = info.outline(num_classes=NUM_CLASSES)
        student = student_spec.outline(num_classes=NUM_CLASSES)
        found += [
            _describe(name, "teacher", info.architecture, teacher),
            _describe(
                name,
                "student",
                f"{pair.student} of {name}" if pair.student in DIVISORS else student_spec.architecture,
                student,
            ),
        ]
    return tuple(found)


def _describe(pair: str, role: str, name: str, model: TimmModel) -> Architecture:
    shape = family_of(model).shape(model)
    depth, width, heads = (
        " / ".join(map(str, numbers)) or "–" for numbers in (shape.depths, shape.widths, shape.heads)
    )
    published: dict[str, Any] | None = paper_numbers()["architectures"].get(name)
    return Architecture(
        pair=pair,
        role=role,
        name=name,
        depth=depth,
        width=width,
        heads=heads,
        num_parameters=count_parameters(model),
        paper=published["parameters"] if published else None,
        agrees=(depth, width, heads) == (published["depth"], published["width"], published["heads"])
        if published
        else None,
    )
