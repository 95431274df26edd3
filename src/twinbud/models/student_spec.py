"""The architecture that student and auxiliary share: the teacher's with narrower widths, or a timm name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import timm
import torch

from twinbud.config.combinations import DIVISORS
from twinbud.config.schema import Attention, Family
from twinbud.core.errors import TwinbudError, unknown_choice
from twinbud.data.preprocessing import Preprocessing
from twinbud.models.discovery.family import DiscoveredFamily, discover
from twinbud.models.families.base import SelectionFamily, TimmModel
from twinbud.models.families.heads import part_of_every_head
from twinbud.models.families.registry import family_of
from twinbud.models.narrowing import Shapes, build_network, narrowed_shapes, outline_network, shapes_of
from twinbud.models.teacher import TeacherInfo
from twinbud.models.widths import divided_sizes

_SET_ELSEWHERE = ("num_classes", "in_chans", "img_size")
"""Arguments of a teacher that a student does not keep: classes and image size are the run's, channels are always 3.
A family whose weights fix the image size keeps it."""


@dataclass(frozen=True, kw_only=True)
class StudentSpec:
    """How timm builds student and auxiliary.

    Attributes:
        architecture: timm's name, without a tag.
        model_args: Arguments of ``timm.create_model`` that give the shape, without classes, image size and dropout.
        mean, std: The teacher's normalization, which the students keep.
        family: The family of the architecture and its teacher.
        template: A network of this architecture with one class, on the meta device (shapes without numbers).
        shapes: Shapes of the template's tensors where ``model_args`` alone give wider ones; None where they suffice,
            so that timm alone can build the network.
        has_drop_path: Whether timm can build the architecture with stochastic depth.
    """

    architecture: str
    model_args: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    family: SelectionFamily = field(repr=False)
    template: TimmModel = field(repr=False)
    shapes: Shapes | None = field(default=None, repr=False)
    has_drop_path: bool = True

    @property
    def family_choice(self) -> Family:
        """How the widths of the family are known, as the setting ``family`` spells it."""
        return "auto" if isinstance(self.family, DiscoveredFamily) else "described"

    def preprocessing(self, image_size: int) -> Preprocessing:
        """Return the preprocessing of the student's input at one image size."""
        return Preprocessing(image_size=image_size, mean=self.mean, std=self.std)

    def timm_arguments(self, image_size: int) -> dict[str, Any]:
        """Return all arguments that give the shape for images of ``image_size`` pixels a side.

        Raises:
            TwinbudError: The architecture cannot process images of that size.
        """
        return self.model_args | self.family.image_arguments(self.template, image_size, self.architecture)

    def build(self, *, image_size: int, num_classes: int, drop_path: float = 0.0, seed: int = 0) -> TimmModel:
        """Build a network with timm's own random initialization, which depends on ``seed`` alone.

        Raises:
            TwinbudError: The architecture cannot process images of that size, or has no stochastic depth.
        """
        arguments: dict[str, Any] = self.timm_arguments(image_size) | {"num_classes": num_classes}
        if self.has_drop_path:  # also where it is 0, since some architectures have another rate by default
            arguments["drop_path_rate"] = drop_path
        elif drop_path:
            problem = f"timm's {self.architecture} has no stochastic depth"
            raise TwinbudError(problem, where=f"--drop-path {drop_path}", fix="Use --drop-path 0")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_network(self.architecture, self.architecture, self.shapes, **arguments)

    def outline(self, *, num_classes: int, image_size: int | None = None) -> TimmModel:
        """Build a network on the meta device, for the image size of its pretrained weights unless one is given.

        Raises:
            TwinbudError: The architecture cannot process images of that size.
        """
        arguments = self.model_args if image_size is None else self.timm_arguments(image_size)
        return outline_network(
            self.architecture, self.architecture, self.shapes, **arguments | {"num_classes": num_classes}
        )


def read_student_spec(
    teacher_info: TeacherInfo, student: str, family: Family = "described", attention: Attention = "heads"
) -> StudentSpec:
    """Find the students' architecture for a teacher, without opening its weights.

    Args:
        teacher_info: The teacher.
        student: "half" or "quarter" of every width, "same" for the teacher's own architecture, or a timm name of the
            teacher's family.
        family: "described", or "auto" to find the widths of the teacher's architecture.
        attention: With "within", a part of the teacher has as many heads of fewer channels.

    Raises:
        TwinbudError: The name is unknown or belongs to another family, or the teacher's widths cannot be divided.
    """
    teacher = teacher_info.outline(num_classes=0)
    known = family_of(teacher)
    if family == "auto":
        known = discover(teacher_info.architecture, teacher_info.name, teacher_info.model_args)
    shapes: Shapes | None = None
    divisor = DIVISORS.get(student)
    if divisor and attention == "within":
        known.check_attention(teacher, attention)
        architecture = teacher_info.architecture
        arguments = teacher_info.model_args | part_of_every_head(teacher, divisor) | known.pooling_arguments(teacher)
    elif divisor:
        architecture = known.narrow_name(teacher_info.architecture, divisor)
        shapes = _narrow_shapes(teacher_info, known, divisor) if architecture == teacher_info.architecture else None
        given = known.narrow_arguments(teacher_info.architecture, teacher, divisor) if shapes is None else {}
        arguments = teacher_info.model_args | given
    elif student == "same":
        architecture, arguments = teacher_info.architecture, teacher_info.model_args | known.pooling_arguments(teacher)
        shapes = teacher_info.shapes
    else:
        architecture = student.partition(".")[0]
        if not timm.is_model(architecture):
            raise unknown_student(student)
        arguments = known.form_arguments(teacher)
    return make_student_spec(
        architecture, arguments, mean=teacher_info.mean, std=teacher_info.std, family=known, shapes=shapes
    )


def _narrow_shapes(teacher_info: TeacherInfo, family: SelectionFamily, divisor: int) -> Shapes | None:
    """Return the shapes of the teacher with divided widths, or None if timm's arguments give them."""
    teacher = teacher_info.outline(num_classes=1)
    sizes = family.narrow_sizes(teacher, divisor)
    if sizes is None and teacher_info.shapes is None:
        return None
    specs, state = family.specs(teacher), teacher.state_dict()
    return narrowed_shapes(specs, state, divided_sizes(specs, state, divisor) if sizes is None else sizes)


def make_student_spec(
    architecture: str,
    model_args: dict[str, Any],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    family: SelectionFamily | None = None,
    shapes: Shapes | None = None,
) -> StudentSpec:
    """Describe the named architecture.

    Args:
        architecture: timm's name, without a tag.
        model_args: Arguments of ``timm.create_model``; those that do not give the shape are dropped.
        mean: Normalization for pixels in [0, 1], three numbers.
        std: See ``mean``.
        family: The teacher's family, or None to accept any.
        shapes: Shapes of the tensors, for any number of classes; None for those that timm's arguments give.

    Raises:
        TwinbudError: The architecture is not of ``family``, or of no supported one.
    """
    given, model_args = model_args, _shape_arguments(model_args)
    template = outline_network(architecture, architecture, None, **model_args | {"num_classes": 1})
    if (family or family_of(template)).has_fixed_image_size and "img_size" in given:
        model_args["img_size"] = given["img_size"]
    if shapes is not None or "img_size" in model_args:
        template = outline_network(architecture, architecture, shapes, **model_args | {"num_classes": 1})
    if isinstance(family, DiscoveredFamily):
        family.specs(template)  # refuses another architecture
    elif family is not None and not family.owns(template):
        raise TwinbudError(
            f"{architecture} is a {family_of(template).name}, but the teacher is a {family.name}",
            where="--student",
            fix=f"Use --student half, name a {family.name}, or train it whole with --method finetune",
        )
    # timm maps deprecated names to current ones, which a delivered folder should have
    current = timm.models.get_deprecated_models().get(architecture) or architecture
    return StudentSpec(
        architecture=current.partition(".")[0],
        model_args=model_args,
        mean=mean,
        std=std,
        family=family or family_of(template),
        template=template,
        shapes=None if shapes is None else shapes_of(template.state_dict()),
        has_drop_path=_has_drop_path(architecture, model_args),
    )


def _has_drop_path(architecture: str, model_args: dict[str, Any]) -> bool:
    """Return whether timm builds the architecture with a rate of stochastic depth."""
    try:
        outline_network(architecture, architecture, None, **model_args | {"drop_path_rate": 0.0})
    except TwinbudError:
        return False
    return True


def _shape_arguments(model_args: dict[str, Any]) -> dict[str, Any]:
    """Return those arguments that give a network's shape.

    Dropout rates go with the rest: regularization is the run's own setting. So does an empty ``global_pool``, with
    which timm saves feature extractors, since a classifier needs one vector per image.
    """
    return {
        name: value
        for name, value in model_args.items()
        if name not in _SET_ELSEWHERE
        and not name.endswith(("drop_rate", "drop_path_rate", "drop_block_rate"))
        and not (name == "global_pool" and not value)
    }


def unknown_student(student: str) -> TwinbudError:
    """Return the error for a student that is neither a part of the teacher nor a timm name."""
    near = unknown_choice("--student", student, [*DIVISORS, *timm.list_models()])
    return TwinbudError(f"'{student}' is neither half, quarter nor a timm name", where="--student", fix=near.fix)
