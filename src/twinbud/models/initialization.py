"""The start of a run: an architecture and, unless it starts at random, selected weights or those of a whole network."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from twinbud.config.fields import option_of
from twinbud.config.plan import contradicts_plan
from twinbud.config.schema import WHOLE_METHODS, Auxiliary, ModelConfig, RunConfig, TrainingConfig
from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import State
from twinbud.models.families.registry import without_recovery
from twinbud.models.families.streams import require_subspace
from twinbud.models.selection_io import Selection, load_selection, select
from twinbud.models.student_pair import StudentPair, build_baseline, build_pretrained, build_student_pair
from twinbud.models.student_spec import StudentSpec, read_student_spec
from twinbud.models.teacher import TeacherInfo, open_teacher, read_teacher_info


@dataclass(frozen=True, kw_only=True, eq=False)
class Initialization:
    """What student and auxiliary are built from.

    Attributes:
        model: The run's settings; with ``selected``, the settings of its plan.
        student_spec: The architecture of both.
        selection: The weights they inherit; None in CM2-CM4 and for a whole network.
        pretrained: All tensors of the network that ``finetune`` and ``probe`` keep whole; None for the other methods.
        auxiliary: The kind of auxiliary.
    """

    model: ModelConfig
    student_spec: StudentSpec
    selection: Selection | None
    pretrained: State | None = None
    auxiliary: Auxiliary

    def build(self, training: TrainingConfig, *, num_classes: int, device: torch.device) -> StudentPair:
        """Build student and auxiliary on the device of training."""
        assert training.drop_path != "auto", "drop_path is resolved before building"
        common = {
            "image_size": training.image_size,
            "num_classes": num_classes,
            "drop_path": training.drop_path,
            "seed": training.seed,
        }
        if self.selection is not None:
            student_pair = build_student_pair(self.selection, auxiliary=self.auxiliary, **common)
        elif self.pretrained is not None:
            student_pair = build_pretrained(self.student_spec, self.pretrained, **common)
        else:
            student_pair = build_baseline(
                self.student_spec, self.model.method, layer_scale=self.model.layer_scale, **common
            )
        for network in (student_pair.student, student_pair.auxiliary):
            if network is not None:
                network.to(device, memory_format=self.student_spec.family.memory_format)
        return student_pair

    def fingerprint(self) -> str:
        """Return a SHA-256 of the architecture, the plan and the inherited tensors; names and paths do not enter."""
        student_spec, selection = self.student_spec, self.selection
        start: dict[str, Any] = {
            "student": [student_spec.architecture, student_spec.model_args, student_spec.mean, student_spec.std],
            "plan": selection.plan.to_json() if selection else None,
        }
        if student_spec.shapes is not None:
            start["shapes"] = dict(student_spec.shapes)
        digest = hashlib.sha256(json.dumps(start, sort_keys=True).encode())
        states = (selection.student_weights, selection.auxiliary_weights) if selection else (self.pretrained,)
        for state in states:
            for name, tensor in sorted((state or {}).items()):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


def open_initialization(config: RunConfig, teacher: TeacherInfo | None = None) -> Initialization:
    """Read the students' architecture and open their weights; the baselines CM2-CM4 open none.

    Args:
        config: The run.
        teacher: The fine-tuned teacher, which takes the place of ``config.model.teacher``; None without fine-tuning.

    Raises:
        TwinbudError: A setting contradicts the plan of ``selected``, or the teacher's family does not support the
            recovery that is requested; see also ``select``, ``load_selection`` and ``StudentSpec.timm_arguments``.
    """
    model, auxiliary = config.model, config.auxiliary
    inherits, two_subsets = model.method in ("dual", "selection"), auxiliary in ("other", "frozen")
    if model.selected is not None:
        selection = load_selection(model.selected)
        model = _as_planned(model, selection, opens_teacher=config.teacher_use is not None)
        student_spec = selection.student_spec
        _require_support(config, student_spec)
        selection = selection if two_subsets else replace(selection, auxiliary_weights=None)
        return Initialization(
            model=model, student_spec=student_spec, selection=selection if inherits else None, auxiliary=auxiliary
        )
    if model.method in WHOLE_METHODS:
        return _open_whole(config)
    teacher_info = teacher or read_teacher_info(model.teacher or "")
    student_spec = read_student_spec(teacher_info, model.student, model.family, model.attention)
    _require_support(config, student_spec)  # before weights are opened
    if not inherits:
        return Initialization(model=model, student_spec=student_spec, selection=None, auxiliary=auxiliary)
    selection = select(
        teacher_info,
        model.student,
        family=model.family,
        rule=model.rule,
        attention=model.attention,
        seed=config.training.seed,
        swap_roles=model.swap_roles,
        with_auxiliary=two_subsets,
    )
    return Initialization(model=model, student_spec=selection.student_spec, selection=selection, auxiliary=auxiliary)


def describe_student(model: ModelConfig) -> StudentSpec:
    """Read the architecture of the student, without opening weights.

    Raises:
        TwinbudError: See ``read_teacher_info`` and ``read_student_spec``.
    """
    if model.method in WHOLE_METHODS:
        return read_student_spec(_pretrained_info(model), "same")
    return read_student_spec(read_teacher_info(model.teacher or ""), model.student, model.family, model.attention)


def _open_whole(config: RunConfig) -> Initialization:
    """Open the pretrained network that the run keeps whole.

    Raises:
        TwinbudError: See ``read_teacher_info``, ``open_teacher`` and ``StudentSpec.timm_arguments``.
    """
    teacher_info = _pretrained_info(config.model)
    student_spec = read_student_spec(teacher_info, "same")
    _require_support(config, student_spec)  # before weights are opened
    if config.model.method == "probe":
        _require_linear_classifier(student_spec, "--method probe", "Use --method finetune, or another network")
    return Initialization(
        model=config.model,
        student_spec=student_spec,
        selection=None,
        pretrained=open_teacher(teacher_info).model.state_dict(),
        auxiliary=config.auxiliary,
    )


def _pretrained_info(model: ModelConfig) -> TeacherInfo:
    return read_teacher_info(model.pretrained or "", "--teacher" if model.student == "same" else "--student")


def _require_linear_classifier(student_spec: StudentSpec, option: str, fix: str) -> None:
    """Require that a regression can become the classifier of the network.

    Raises:
        TwinbudError: The classifier is not one linear layer.
    """
    if not isinstance(student_spec.template.get_classifier(), nn.Linear):
        raise TwinbudError(
            f"the classifier of {student_spec.architecture} is not one linear layer, which the regression needs",
            where=option,
            fix=fix,
        )


def _require_support(config: RunConfig, student_spec: StudentSpec) -> None:
    """Require that the architecture can process the run's image size and supports its recovery and classifier.

    Raises:
        TwinbudError: It does not.
    """
    student_spec.timm_arguments(config.training.image_size)
    if config.training.classifier_start == "probe":
        _require_linear_classifier(student_spec, "--classifier-start probe", "Use --classifier-start random")
    if config.recovery.recovers_classifier:
        _require_linear_classifier(student_spec, "--recover-classifier on", "Use --recover-classifier off")
    if config.recovery.recover != "none":
        recovery = student_spec.family.recovery
        if recovery is None:
            raise without_recovery(student_spec.family)
        for block in student_spec.family.blocks(student_spec.template).values():
            recovery.linear_maps(block)  # refuses blocks that it does not support
        if config.recovery.chooses_by_importance is not None:
            name, value = config.recovery.chooses_by_importance
            if config.recovery.uses_subspace:
                require_subspace(student_spec.family, student_spec.template)
            else:
                recovery.stream_norms(student_spec.template, f"{option_of(name)} {value}")


def _as_planned(model: ModelConfig, selection: Selection, *, opens_teacher: bool) -> ModelConfig:
    """Return the settings, which must agree with the plan; ``teacher`` says where a teacher that is opened is now.

    Raises:
        TwinbudError: One contradicts the plan, which ``run_config`` would have filled in.
    """
    assert model.selected is not None
    planned = selection.settings | ({"teacher": model.teacher} if opens_teacher and model.teacher else {})
    for name, value in planned.items():
        if getattr(model, name) not in (value, None):
            raise contradicts_plan(model.selected, name, getattr(model, name), value)
    return replace(model, **planned)
