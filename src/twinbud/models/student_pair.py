"""The pair of student and auxiliary, which are of one architecture; the teacher is no part of it.

It is built from a selection, as the baselines CM1-CM4 (paper section 4.1), or as a whole network.

Every random draw has its own stream, so that the student starts the same with and without an auxiliary, and the two
classifiers differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from twinbud.config.schema import Auxiliary, LayerScale, Method
from twinbud.core.errors import TwinbudError, first_few
from twinbud.core.rng import Stream, stream_seed
from twinbud.models.families.base import State, TimmModel
from twinbud.models.outline import classifiers
from twinbud.models.selection_io import Selection
from twinbud.models.student_spec import StudentSpec
from twinbud.models.widths import Role


@dataclass(frozen=True, kw_only=True)
class StudentPair:
    """The student S, which is trained, and the auxiliary S′, which follows it as a moving average.

    Attributes:
        student: The student.
        auxiliary: The auxiliary, or None to train without one.
        frozen: Whether the auxiliary keeps its weights instead of following the student.
        is_copy: Whether the auxiliary starts with the student's weights.
    """

    student: TimmModel
    auxiliary: TimmModel | None
    frozen: bool = False
    is_copy: bool = False


def build_student_pair(
    selection: Selection,
    *,
    image_size: int,
    num_classes: int,
    drop_path: float = 0.0,
    seed: int = 0,
    auxiliary: Auxiliary = "other",
) -> StudentPair:
    """Build student and auxiliary (CM1: the student alone) with selected weights and new classifiers.

    Args:
        selection: The selected weights; without those of the auxiliary, it can only be a copy.
        image_size: Side of the images in pixels; the position grid is resampled to it.
        num_classes: Classes of the new classifiers.
        drop_path: Rate of stochastic depth of the student; the auxiliary is never trained.
        seed: Seed of the streams ``student-head`` and ``auxiliary-head``.
        auxiliary: ``other`` and ``frozen``: the second subset and a classifier of its own; ``copy``: all of the
            student's weights, including the classifier; ``none``: no auxiliary.
    """

    def inherit(state: State, head: Stream, drop: float) -> TimmModel:
        student_spec = selection.student_spec
        model = student_spec.build(image_size=image_size, num_classes=num_classes, drop_path=drop)
        model.load_state_dict(student_spec.family.fit_positions(state, model), strict=False)
        _set_ones(model, [n for n in _tensors(student_spec, model, "layer-scale") if n not in state])
        _new_classifier(student_spec, model, stream_seed(head, seed))
        return model

    student = inherit(selection.student_weights, "student-head", drop_path)
    state, head = (
        (selection.student_weights, "student-head")
        if auxiliary == "copy"
        else (selection.auxiliary_weights, "auxiliary-head")
    )
    if state is None or auxiliary == "none":
        return StudentPair(student=student, auxiliary=None)
    second = inherit(state, head, 0.0).eval().requires_grad_(False)
    return StudentPair(student=student, auxiliary=second, frozen=auxiliary == "frozen", is_copy=auxiliary == "copy")


def build_pretrained(
    student_spec: StudentSpec,
    weights: State,
    *,
    image_size: int,
    num_classes: int,
    drop_path: float = 0.0,
    seed: int = 0,
) -> StudentPair:
    """Build a pretrained network whole, with a new classifier.

    Args:
        student_spec: Its architecture.
        weights: All its tensors; those of its own classifier, if any, are not used.
        image_size: Side of the images in pixels; a position grid is resampled to it.
        num_classes: Classes of the new classifier.
        drop_path: Rate of stochastic depth.
        seed: Seed of the stream ``student-head``.

    Raises:
        TwinbudError: The tensors are not those of the architecture at that image size.
    """
    model = student_spec.build(image_size=image_size, num_classes=num_classes, drop_path=drop_path)
    new = set(_classifier_tensors(student_spec, model))
    expected = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in new}
    state = student_spec.family.fit_positions(weights, model)
    wrong = sorted(name for name, shape in expected.items() if name not in state or state[name].shape != shape)
    if wrong:
        raise TwinbudError(
            f"the pretrained weights are not those of a classifier for images of {image_size} pixels"
            f" ({first_few(wrong, 3)})",
            where=student_spec.architecture,
            fix="Use the image size of the pretrained weights, or another network",
        )
    model.load_state_dict({name: state[name] for name in expected}, strict=False)
    _new_classifier(student_spec, model, stream_seed("student-head", seed))
    return StudentPair(student=model, auxiliary=None)


def build_baseline(
    student_spec: StudentSpec,
    method: Method,
    *,
    image_size: int,
    num_classes: int,
    drop_path: float = 0.0,
    seed: int = 0,
    layer_scale: LayerScale = "one",
) -> StudentPair:
    """Build a randomly initialized student: ``timm`` (CM2), ``xavier`` uniform (CM3) or ``kaiming`` normal (CM4).

    Xavier and Kaiming fill every linear and convolution weight, including the classifier's; biases are 0, norms have
    weight 1 and bias 0. LayerScale starts at 1 unless ``layer_scale`` keeps timm's value, which disables the blocks.
    """
    body = stream_seed("student", seed)
    model = student_spec.build(image_size=image_size, num_classes=num_classes, drop_path=drop_path, seed=body)
    if layer_scale == "one":
        _set_ones(model, _tensors(student_spec, model, "layer-scale"))
    if method == "timm":
        _new_classifier(student_spec, model, stream_seed("student-head", seed))
    else:
        _fill(model, method, torch.Generator().manual_seed(body))
    return StudentPair(student=model, auxiliary=None)


def _tensors(student_spec: StudentSpec, model: TimmModel, role: Role) -> list[str]:
    return [name for name, spec in student_spec.family.specs(model).items() if spec.role == role]


def _classifier_tensors(student_spec: StudentSpec, model: TimmModel) -> list[str]:
    prefixes = tuple(f"{name}." for name in classifiers(student_spec.architecture))
    return [name for name, _ in model.named_parameters() if name.startswith(prefixes)]


@torch.no_grad()
def _set_ones(model: TimmModel, names: list[str]) -> None:
    for name in names:
        model.get_parameter(name).fill_(1.0)


@torch.no_grad()
def _new_classifier(student_spec: StudentSpec, model: TimmModel, seed: int) -> None:
    """Initialize a classifier as timm does: truncated normal with standard deviation 0.02, zero bias."""
    generator = torch.Generator().manual_seed(seed)
    for name in _classifier_tensors(student_spec, model):
        parameter = model.get_parameter(name)
        if parameter.dim() > 1:
            nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
        else:
            parameter.zero_()


@torch.no_grad()
def _fill(model: TimmModel, method: Method, generator: torch.Generator) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if method == "xavier":
                nn.init.xavier_uniform_(module.weight, generator=generator)
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm):
            if module.weight is not None:
                module.weight.fill_(1.0)
            if module.bias is not None:
                module.bias.zero_()
