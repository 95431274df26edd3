"""The weights that student and auxiliary inherit, in memory or in a folder that is used without the teacher."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from twinbud.config.schema import Attention, Family, ModelConfig, Rule
from twinbud.core.errors import TwinbudError, explained_writes, first_few
from twinbud.core.files import new_folder, read_json
from twinbud.data.seen_images import SEEN_IMAGES, images_seen_by, write_seen_images
from twinbud.models.discovery.family import discover
from twinbud.models.families.base import State
from twinbud.models.selection import PairRole, SelectionPlan, extract_weights, plan_selection
from twinbud.models.student_spec import StudentSpec, make_student_spec, read_student_spec
from twinbud.models.teacher import TeacherInfo, open_teacher, read_teacher_info
from twinbud.models.untrusted import read_architecture, read_model_args, read_narrowed_shapes, read_normalization
from twinbud.models.weights_file import read_safetensors

FORMAT = 2
_FILES: dict[PairRole, str] = {"student": "student.safetensors", "auxiliary": "auxiliary.safetensors"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """Two sub-networks of one teacher.

    Attributes:
        teacher: The teacher as the user spelled it.
        student: "half", "quarter", or the student's timm name.
        student_spec: The architecture of student and auxiliary.
        plan: The teacher's indices along each width.
        student_weights: The student's tensors by timm's names, float32, without classifier; position grids
            and tables of relative positions still have the teacher's size.
        auxiliary_weights: The same for the auxiliary, or None if there is none.
    """

    teacher: str
    student: str
    student_spec: StudentSpec
    plan: SelectionPlan
    student_weights: State = field(repr=False)
    auxiliary_weights: State | None = field(repr=False)

    def weights(self, pair_role: PairRole) -> State | None:
        """Return the tensors of the student or the auxiliary."""
        return self.student_weights if pair_role == "student" else self.auxiliary_weights

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of ``ModelConfig`` that made the selection."""
        plan = self.plan
        return {
            "teacher": self.teacher,
            "student": self.student,
            "family": self.student_spec.family_choice,
            "rule": plan.rule,
            "attention": plan.attention,
            "swap_roles": plan.swap_roles,
        }


def select(
    teacher_info: TeacherInfo,
    student: str = "half",
    *,
    family: Family = "described",
    rule: Rule = "uniform",
    attention: Attention = "interleaved",
    seed: int = 0,
    swap_roles: bool = False,
    with_auxiliary: bool = True,
) -> Selection:
    """Select the weights of student and auxiliary from a teacher (paper section 3.1).

    See ``read_student_spec`` and ``plan_selection`` for the arguments.

    Raises:
        TwinbudError: The teacher cannot be opened, or the student does not fit into it.
    """
    student_spec = read_student_spec(teacher_info, student, family, attention)
    student_spec.family.check_attention(student_spec.template, attention)  # before weights are opened
    teacher = open_teacher(teacher_info).model
    plan = plan_selection(
        teacher,
        student_spec.template,
        student_spec.family,
        rule=rule,
        attention=attention,
        seed=seed,
        swap_roles=swap_roles,
        with_auxiliary=with_auxiliary,
    )
    return Selection(
        teacher=teacher_info.name,
        student=student,
        student_spec=student_spec,
        plan=plan,
        student_weights=extract_weights(plan, teacher, student_spec.template, student_spec.family, "student"),
        auxiliary_weights=extract_weights(plan, teacher, student_spec.template, student_spec.family, "auxiliary")
        if with_auxiliary
        else None,
    )


def save_selection(selection: Selection, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write ``student.safetensors``, ``auxiliary.safetensors`` and ``plan.json`` into an existing folder.

    Args:
        selection: The selection, with both student and auxiliary.
        folder: An existing folder.
        dtype: float32, or float16 for half the size.
    """
    checksums = {}
    with explained_writes(folder):
        for pair_role, file in _FILES.items():
            state = {
                name: tensor.to(dtype).contiguous() for name, tensor in (selection.weights(pair_role) or {}).items()
            }
            contents = save(state)
            # not by safetensors itself, whose error hides a full disk
            (folder / file).write_bytes(contents)
            checksums[file] = hashlib.sha256(contents).hexdigest()
        student_spec = selection.student_spec
        content = {
            "format": FORMAT,
            "teacher": selection.teacher,
            "family": student_spec.family_choice,
            "student": {
                "name": selection.student,
                "architecture": student_spec.architecture,
                "model_args": student_spec.model_args,
                "shapes": student_spec.shapes,
            },
            "mean": student_spec.mean,
            "std": student_spec.std,
            "sha256": checksums,
            **selection.plan.to_json(),
        }
        (folder / "plan.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def select_to_folder(
    model: ModelConfig, folder: Path, *, seed: int = 0, half_precision: bool = False, force: bool = False
) -> Selection:
    """Select with the settings ``model`` and write the result into a new folder, completely or not at all.

    Raises:
        TwinbudError: See ``select`` and ``new_folder``.
    """
    if model.teacher is None:
        raise TwinbudError("selection needs a teacher", where="--teacher", fix="Give --teacher dinov2-small")
    with new_folder(folder, force=force, optional=(SEEN_IMAGES,)) as draft:
        selection = select(
            read_teacher_info(model.teacher),
            model.student,
            family=model.family,
            rule=model.rule,
            attention=model.attention,
            seed=seed,
            swap_roles=model.swap_roles,
        )
        save_selection(selection, draft, torch.float16 if half_precision else torch.float32)
        if seen := images_seen_by(model.teacher):
            write_seen_images(draft, seen)
    return selection


def load_selection(folder: Path) -> Selection:
    """Read a folder that ``save_selection`` wrote.

    Raises:
        TwinbudError: It is not such a folder, or its files do not fit together.
    """
    content = _read_plan(folder)
    path = folder / "plan.json"
    try:
        checksums, student = dict(content["sha256"]), dict(content["student"])
        teacher, plan = str(content["teacher"]), SelectionPlan.from_json(content)
        widths = [*plan.widths.values(), *plan.tensor_widths.values()]
        sizes = [size for width in widths for size in (width.teacher_size, width.student_size)]
        sound = all(type(size) is int and size > 0 for size in sizes)
        saved = student["architecture"], student["model_args"], content["mean"], content["std"]
        shapes, family = student.get("shapes"), content.get("family", "described")
        name = str(student.get("name", saved[0]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _no_plan(folder) from error
    if not sound:
        raise _no_plan(folder)
    architecture, model_args = read_architecture(saved[0], path), read_model_args(saved[1], path)
    student_spec = make_student_spec(
        architecture,
        model_args,
        mean=read_normalization(saved[2], path),
        std=read_normalization(saved[3], path),
        shapes=read_narrowed_shapes(shapes, path),
        family=discover(architecture, str(path), model_args) if family == "auto" else None,
    )
    states = {
        pair_role: _read_state(folder / file, checksums.get(file), student_spec) for pair_role, file in _FILES.items()
    }
    return Selection(
        teacher=teacher,
        student=name,
        student_spec=student_spec,
        plan=plan,
        student_weights=states["student"],
        auxiliary_weights=states["auxiliary"],
    )


def _read_state(path: Path, checksum: object, student_spec: StudentSpec) -> State:
    """Read the tensors of student or auxiliary and check them against plan.json: checksum, names and shapes."""
    missing = not path.is_file()
    if missing or hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
        problem = "the weights are missing" if missing else "the checksum differs from that in plan.json"
        raise TwinbudError(problem, where=str(path), fix="Copy the whole folder again, or run 'twinbud select' again")
    state = read_safetensors(path)
    shapes = {name: tensor.shape for name, tensor in student_spec.template.state_dict().items()}
    specs = student_spec.family.specs(student_spec.template)
    wrong = [name for name in state if name not in shapes]
    wrong += [name for name in shapes if name not in state and specs[name].role not in ("classifier", "layer-scale")]
    for name in shapes.keys() & state.keys():
        expected, found = list(shapes[name]), list(state[name].shape)
        if specs[name].depends_on_image_size and len(expected) == len(found):  # it still has the teacher's size
            selected = [dimension for dimension, axis in enumerate(specs[name].axes) if axis is not None]
            expected, found = [expected[d] for d in selected], [found[d] for d in selected]
        wrong += [name] if expected != found else []
    if wrong:
        raise TwinbudError(
            f"the tensors are not those of {student_spec.architecture} with the shape in plan.json"
            f" ({first_few(sorted(wrong), 3)})",
            where=str(path),
            fix="Run 'twinbud select' again",
        )
    return {name: tensor.float() for name, tensor in state.items()}


def _read_plan(folder: Path) -> dict[str, Any]:
    path = folder / "plan.json"
    try:
        content = read_json(path)
        found = content["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _no_plan(folder) from error
    if found != FORMAT:
        raise TwinbudError(
            f"plan.json has format {found!r}; this version reads {FORMAT}",
            where=str(path),
            fix="Select again with this version of twinbud",
        )
    return content


def _no_plan(folder: Path) -> TwinbudError:
    return TwinbudError(
        "no output folder of 'twinbud select': plan.json is missing or damaged",
        where=str(folder),
        fix="Run: twinbud select --teacher T --output DIR",
    )
