"""The weights that S and S′ inherit, in memory or in a folder that travels without the teacher."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from twinbud.config import Attention, ModelConfig, Rule
from twinbud.errors import TwinbudError, explained_writes, first_few
from twinbud.files import new_folder, read_json
from twinbud.models.blueprint import Blueprint, blueprint, design_student
from twinbud.models.families.base import State
from twinbud.models.saved import read_architecture, read_model_args, read_normalisation
from twinbud.models.selection import SelectionPlan, cut, plan_selection
from twinbud.models.teacher import TeacherCard, open_teacher, read_safetensors, read_teacher_card

FORMAT = 1
_FILES = {"main": "student.safetensors", "auxiliary": "auxiliary.safetensors"}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Two sub-networks of one teacher.

    Attributes:
        teacher: The teacher's name.
        student: The student as it was asked for: "half", or a timm name.
        blueprint: The architecture of S and S′.
        plan: What was cut where.
        main, auxiliary: Tensors of S and S′ by timm's names, float32, classifier left out; the position grid
            still has the teacher's size. ``auxiliary`` is None where no S′ was asked for.
    """

    teacher: str
    student: str
    blueprint: Blueprint
    plan: SelectionPlan
    main: State
    auxiliary: State | None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of ModelConfig that it was made with."""
        plan = self.plan
        return {
            "teacher": self.teacher,
            "student": self.student,
            "rule": plan.rule,
            "attention": plan.attention,
            "swap_roles": plan.swap_roles,
        }


def select(
    card: TeacherCard,
    student: str = "half",
    *,
    rule: Rule = "uniform",
    attention: Attention = "interleaved",
    seed: int = 0,
    swap_roles: bool = False,
    twins: bool = True,
) -> Selection:
    """Select the weights of S and S′ from a teacher (paper section 3.1); see ``plan_selection`` for the arguments.

    Raises:
        TwinbudError: The teacher cannot be opened, or the student cannot be cut out of it.
    """
    design = design_student(card, student)
    teacher = open_teacher(card).model
    plan = plan_selection(
        teacher,
        design.template,
        design.family,
        rule=rule,
        attention=attention,
        seed=seed,
        swap_roles=swap_roles,
        twins=twins,
    )
    return Selection(
        teacher=card.name,
        student=student,
        blueprint=design,
        plan=plan,
        main=cut(plan, teacher, design.template, design.family, "main"),
        auxiliary=cut(plan, teacher, design.template, design.family, "auxiliary") if twins else None,
    )


def save_selection(selection: Selection, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write ``student.safetensors``, ``auxiliary.safetensors`` and ``plan.json`` into an existing folder.

    Args:
        selection: What to write; both S and S′ must be there.
        folder: Where to.
        dtype: float32, or float16 for half the size.
    """
    checksums = {}
    with explained_writes(folder):
        for twin, file in _FILES.items():
            state = {name: tensor.to(dtype).contiguous() for name, tensor in getattr(selection, twin).items()}
            contents = save(state)
            # written from here, since safetensors hides a full disk in an error of its own
            (folder / file).write_bytes(contents)
            checksums[file] = hashlib.sha256(contents).hexdigest()
        design = selection.blueprint
        content = {
            "format": FORMAT,
            "teacher": selection.teacher,
            "student": {
                "name": selection.student,
                "architecture": design.architecture,
                "model_args": design.model_args,
            },
            "mean": design.mean,
            "std": design.std,
            "sha256": checksums,
            **selection.plan.to_json(),
        }
        (folder / "plan.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def select_to_folder(
    model: ModelConfig, folder: Path, *, seed: int = 0, half_precision: bool = False, force: bool = False
) -> Selection:
    """Select as ``model`` says and write the outcome into a new folder, whole or not at all.

    Raises:
        TwinbudError: See ``select`` and ``new_folder``.
    """
    if model.teacher is None:
        raise TwinbudError("a teacher", got="none", where="--teacher", fix="Give --teacher dinov2-small")
    with new_folder(folder, force=force) as draft:
        selection = select(
            read_teacher_card(model.teacher),
            model.student,
            rule=model.rule,
            attention=model.attention,
            seed=seed,
            swap_roles=model.swap_roles,
        )
        save_selection(selection, draft, torch.float16 if half_precision else torch.float32)
    return selection


def load_selection(folder: Path) -> Selection:
    """Read what ``save_selection`` wrote.

    Raises:
        TwinbudError: The folder is not such an output, or its files do not belong together.
    """
    content = _read_plan(folder)
    path = folder / "plan.json"
    try:
        checksums, student = dict(content["sha256"]), dict(content["student"])
        teacher, plan = str(content["teacher"]), SelectionPlan.from_json(content)
        widths = [*plan.widths.values(), *plan.tensor_widths.values()]
        sizes = [size for width in widths for size in (width.teacher, width.student)]
        fates = [*plan.student_tensors.values(), *plan.teacher_tensors.values()]
        sound = all(isinstance(fate, str) for fate in fates) and all(type(size) is int and size > 0 for size in sizes)
        given = student["architecture"], student["model_args"], content["mean"], content["std"]
        name = str(student.get("name", given[0]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _no_plan(folder) from error
    if not sound:
        raise _no_plan(folder)
    design = blueprint(
        read_architecture(given[0], path),
        read_model_args(given[1], path),
        mean=read_normalisation(given[2], path),
        std=read_normalisation(given[3], path),
    )
    states = {twin: _read_state(folder / file, checksums.get(file), design) for twin, file in _FILES.items()}
    return Selection(
        teacher=teacher,
        student=name,
        blueprint=design,
        plan=plan,
        main=states["main"],
        auxiliary=states["auxiliary"],
    )


def _read_state(path: Path, checksum: object, design: Blueprint) -> State:
    """The tensors of S or S′: those that plan.json vouches for, in the shapes of its architecture."""
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
        raise TwinbudError(
            "the weights that plan.json describes",
            got="others or none",
            where=str(path),
            fix="Run 'twinbud select' again",
        )
    state = read_safetensors(path)
    shapes = {name: tensor.shape for name, tensor in design.template.state_dict().items()}
    roles = {name: spec.role for name, spec in design.family.specs(design.template, "interleaved").items()}
    wrong = [name for name in state if name not in shapes]
    wrong += [name for name in shapes if name not in state and roles[name] not in ("classifier", "layer-scale")]
    for name in shapes.keys() & state.keys():
        ours, theirs = shapes[name], state[name].shape
        if roles[name] == "position":  # its grid still has the teacher's size
            ours, theirs = (len(ours), ours[-1]), (len(theirs), theirs[-1])
        wrong += [name] if ours != theirs else []
    if wrong:
        raise TwinbudError(
            f"tensors of {design.architecture} as plan.json shapes it",
            got=f"others ({first_few(sorted(wrong), 3)})",
            where=str(path),
            fix="Run 'twinbud select' again",
        )
    return {name: tensor.float() for name, tensor in state.items()}


def _read_plan(folder: Path) -> dict[str, Any]:
    path = folder / "plan.json"
    try:
        content = read_json(path)
        known = content["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _no_plan(folder) from error
    if not known:
        raise TwinbudError(
            f"a plan.json of format {FORMAT}",
            got="another",
            where=str(path),
            fix="Select again with this version of twinbud",
        )
    return content


def _no_plan(folder: Path) -> TwinbudError:
    return TwinbudError(
        "the output folder of 'twinbud select'",
        got="no readable plan.json",
        where=str(folder),
        fix="Run: twinbud select --teacher T --output DIR",
    )
