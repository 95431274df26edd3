"""The run id changes with every fact that changes the numbers of a run, and with nothing else."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.builders import save_vit_teacher
from twinbud.config.loading import run_config
from twinbud.config.schema import RunConfig
from twinbud.core.errors import TwinbudError
from twinbud.data.index import ImageIndex, ImageRef, ImageRow
from twinbud.models.families.vit import ViTFamily
from twinbud.models.teacher_fingerprint import teacher_fingerprint
from twinbud.study.run_id import (
    TRAINING_VERSION,
    images_fingerprint,
    make_run_id,
    run_facts,
)

GIVEN = {"profile": "paper", "teacher": "dinov2-small", "threads": 1, "precision": "float32", "data": "here"}


def run_id(images: str = "images", teacher: str = "teacher", **changes: Any) -> str:
    config: RunConfig = run_config({**GIVEN, **changes}, output=Path("anywhere"))
    return make_run_id(run_facts(config, images=images, teacher=teacher, family=ViTFamily()))


@pytest.mark.parametrize(
    "changes",
    [
        {"data": "there"},
        {"device": "cpu"},
        {"evaluate_every": 3},
        {"skip_broken": True},
        {"patient_salt": "file"},
        {"window": "dicom", "frames": "all", "axis": "axial", "volume": None},
        {"label_column": "class"},
        {"temperature": 4.0},
        {"drop_path": 0.0},
        {"recover": "none", "recover_epochs": 7, "recover_refit": "off"},
        {"profile": "quick", "image_size": 224, "epochs": 300, "min_steps": 0, "learning_rate": 1.25e-4,
         "warmup": 1 / 6, "clip_norm": None, "near_duplicates": "ignore"},
    ],
    ids=str,
)  # fmt: skip
def test_paths_devices_and_spellings_do_not_change_the_run_id(changes: dict[str, Any]) -> None:
    assert run_id(**changes) == run_id()


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1}, {"fraction": 0.5}, {"method": "selection"}, {"learning_rate": 1e-3}, {"temperature": 3.0},
        {"threads": 2}, {"precision": "bf16"}, {"rule": "random"}, {"swap_roles": True}, {"split_seed": 1},
        {"split_duplicates": True}, {"student": "vit_tiny_patch16_224"}, {"profile": "quick"},
        {"images": "others"}, {"teacher_": "another"}, {"develop": True}, {"recover": "labelled"},
        {"recover": "unlabelled"}, {"window": "lung"}, {"frames": "middle"},
        {"axis": "coronal"}, {"volume": 0}, {"near_duplicates": "group"},
    ],
    ids=str,
)  # fmt: skip
def test_whatever_changes_numbers_changes_the_run_id(changes: dict[str, Any]) -> None:
    changes = {("teacher" if name == "teacher_" else name): value for name, value in changes.items()}
    assert run_id(**changes) != run_id()


def image_index() -> ImageIndex:
    rows = tuple(ImageRow(path=f"{n}.png", image=ImageRef(Path(f"{n}.png")), label="ab"[n % 2]) for n in range(4))
    return ImageIndex(source="here", rows=rows, classes=("a", "b"))


def test_the_fingerprint_of_images_depends_on_pixels_labels_patients_and_order_but_not_on_paths() -> None:
    digests, here = ("p", "q", "r", "s"), image_index()
    print_ = images_fingerprint(here, digests)
    moved = replace(
        here, source="there", rows=tuple(replace(r, path=f"x/{r.path}", image=ImageRef(Path("y"))) for r in here.rows)
    )
    assert images_fingerprint(moved, digests) == print_
    relabelled = replace(here, rows=(replace(here.rows[0], label="b"), *here.rows[1:]))
    with_patient = replace(here, rows=(replace(here.rows[0], patient_id="7"), *here.rows[1:]))
    divided = replace(here, rows=(replace(here.rows[0], split="test"), *here.rows[1:]))
    for other in (relabelled, with_patient, divided):
        assert images_fingerprint(other, digests) != print_
    assert images_fingerprint(here, ("p", "q", "s", "r")) != print_


def test_the_salt_of_hashed_patients_does_not_change_the_fingerprint_of_images() -> None:
    digests, prints = ("p", "q", "r", "s"), []
    for salts, patients in (("aaaaaa", "abac"), ("bbbbbb", "babc"), ("aaaaaa", "abcc")):
        keys = (f"hashed-{salts}-{patient * 16}" for patient in patients)
        rows = (replace(row, patient_id=key) for row, key in zip(image_index().rows, keys, strict=True))
        prints.append(images_fingerprint(replace(image_index(), rows=tuple(rows)), digests))
    assert prints[0] == prints[1] != prints[2]


def test_the_fingerprint_of_a_teacher_depends_on_its_files_but_not_on_their_path(tmp_path: Path) -> None:
    first, again = save_vit_teacher(tmp_path / "first"), save_vit_teacher(tmp_path / "again")
    other = save_vit_teacher(tmp_path / "other", seed=1)
    assert teacher_fingerprint(first) == teacher_fingerprint(again)
    assert teacher_fingerprint(first) != teacher_fingerprint(other)
    file = f"vit_tiny_patch16_224@{tmp_path}/first/model.safetensors"
    assert teacher_fingerprint(file).startswith("vit_tiny_patch16_224@sha256:")
    assert str(tmp_path) not in teacher_fingerprint(first) + teacher_fingerprint(file)
    fifo = tmp_path / "fifo.safetensors"
    os.mkfifo(fifo)
    with pytest.raises(TwinbudError, match="the teacher's file cannot be read"):  # and is not waited for
        teacher_fingerprint(f"vit_tiny_patch16_224@{fifo}")
    assert teacher_fingerprint("dinov2-small") == "dinov2-small"
    with pytest.raises(TwinbudError, match="the teacher's file cannot be read \\(No such file or directory\\)"):
        teacher_fingerprint("vit_tiny_patch16_224@none.safetensors")


def test_the_training_version_is_raised_when_the_golden_losses_change() -> None:
    """A change of the golden losses makes records of earlier versions invalid."""
    golden = json.loads((Path(__file__).parents[1] / "training" / "golden_losses.json").read_text())
    cases = ("vit dual", "vit selection", "convnext dual", "convnext selection", "recovered")
    losses = [[f"{step['loss']:.4f}" for step in golden[case]] for case in cases]
    checksum = hashlib.sha256(json.dumps(losses).encode()).hexdigest()[:16]
    assert {TRAINING_VERSION: checksum} == {2: "eacd1cc6809caf71"}


LEAST_SQUARES = [
    {"recover_views": 4},
    {"recover_memory": 2.0},
    {"recover_stream": "subspace"},
    {"recover_method": "grail"},
]
MATCHING = [
    {"recover_target": "own"},
    {"recover_blocks": True},
    {"recover_batch_size": 8},
    {"recover_learning_rate": 1e-4},
]


@pytest.mark.parametrize("changes", [{"recover_epochs": 7}, {"recover_refit": "off", "recover_epochs": 1}], ids=str)
def test_recovery_steps_change_the_run_id_where_recovery_is_enabled(changes: dict[str, Any]) -> None:
    assert run_id(recover="labelled", **changes) != run_id(recover="labelled")


@pytest.mark.parametrize("changes", LEAST_SQUARES + MATCHING, ids=str)
def test_settings_of_a_recovery_step_change_the_run_id_only_where_the_step_is_enabled(changes: dict[str, Any]) -> None:
    both: dict[str, Any] = {"recover": "labelled", "recover_epochs": 7, "attention": "heads"}
    one = {**both, **({"recover_refit": "off"} if changes in LEAST_SQUARES else {"recover_epochs": 0})}
    assert run_id(**both, **changes) != run_id(**both)
    assert run_id(**one, **changes) == run_id(**one)
