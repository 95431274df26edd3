"""The architecture that S and S′ share: half the teacher's, or a timm name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import timm
import torch

from twinbud.core.errors import TwinbudError, unknown_choice
from twinbud.models.families import family_of
from twinbud.models.families.base import Family, TimmModel
from twinbud.models.teacher import TeacherCard


@dataclass(frozen=True, kw_only=True)
class StudentSpec:
    """How to build S and S′ with timm.

    Attributes:
        architecture: timm's name.
        model_args: Arguments of ``timm.create_model`` that give its shape, image size and classes aside.
        mean, std: The teacher's normalisation, which the students keep.
        family: What the architecture and its teacher have in common.
        template: A network of this architecture, with a classifier of one class and shapes only (the meta device).
    """

    architecture: str
    model_args: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    family: Family = field(repr=False)
    template: TimmModel = field(repr=False)

    def timm_arguments(self, image_size: int) -> dict[str, Any]:
        """All arguments that give the shape at one image size.

        Raises:
            TwinbudError: The architecture cannot take images of that size.
        """
        return self.model_args | self.family.image_arguments(self.template, image_size, self.architecture)

    def build(self, *, image_size: int, num_classes: int, drop_path: float = 0.0, seed: int = 0) -> TimmModel:
        """A network with timm's own random initialisation, drawn from ``seed`` alone."""
        arguments = self.timm_arguments(image_size) | {"num_classes": num_classes, "drop_path_rate": drop_path}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return timm.create_model(self.architecture, pretrained=False, **arguments)


def read_student_spec(card: TeacherCard, student: str) -> StudentSpec:
    """The architecture of S and S′ for a teacher.

    Args:
        card: The teacher; its weights stay closed.
        student: "half", or a timm name of the teacher's family.

    Raises:
        TwinbudError: An unknown name, or one of another family.
    """
    teacher = outline(card.architecture, card.name, **card.model_args | {"num_classes": 0})
    family = family_of(teacher, card.name)
    if student == "half":
        architecture = card.architecture
        arguments = card.model_args | family.half(architecture, teacher)
    else:
        architecture = student.partition(".")[0]
        if not timm.is_model(architecture):
            raise unknown_student(student)
        arguments = family.form_arguments(teacher)
    arguments = {name: value for name, value in arguments.items() if name != "img_size"}
    return make_student_spec(architecture, arguments, mean=card.mean, std=card.std, family=family)


def make_student_spec(
    architecture: str,
    model_args: dict[str, Any],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    family: Family | None = None,
) -> StudentSpec:
    """A blueprint of the named architecture.

    Raises:
        TwinbudError: It is not of ``family``, or of no known one.
    """
    template = outline(architecture, architecture, **model_args | {"num_classes": 1})
    own = family_of(template, architecture)
    if family is not None and own.name != family.name:
        raise TwinbudError(
            f"a student of the teacher's family, {family.name}",
            got=f"{architecture}, a {own.name}",
            where="--student",
            fix="Use --student half, or name one of the family",
        )
    return StudentSpec(
        architecture=architecture, model_args=model_args, mean=mean, std=std, family=own, template=template
    )


def unknown_student(student: str) -> TwinbudError:
    """The error for a student that is neither "half" nor a timm name."""
    near = unknown_choice("--student", student, ["half", *timm.list_models()])
    return TwinbudError("'half' or a timm name", got=f"'{student}'", where="--student", fix=near.fix)


@contextmanager
def explained_arguments(architecture: str, where: str) -> Iterator[None]:
    """Turn whatever stops timm from building ``architecture`` with the arguments of ``where`` into one clear line."""
    try:
        yield
    except Exception as error:  # timm and torch meet wrong arguments with many unrelated types
        raise TwinbudError(
            f"arguments that timm's {architecture} takes",
            got=f"others ({error})",
            where=where,
            fix="Correct model_args in config.json, or copy the folder again",
        ) from error


def outline(architecture: str, where: str, /, **arguments: Any) -> TimmModel:
    """A network with shapes and no numbers, which takes no time and no memory."""
    with torch.device("meta"), explained_arguments(architecture, where):
        return timm.create_model(architecture, pretrained=False, **arguments)
