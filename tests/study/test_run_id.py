"""Who a run is: what changes its numbers changes its identity, and nothing else does."""

from __future__ import annotations

import hashlib
import json
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
from twinbud.study.run_id import (
    TRAINING_VERSION,
    images_fingerprint,
    make_run_id,
    run_facts,
    teacher_fingerprint,
)

GIVEN = {"teacher": "dinov2-small", "threads": 1, "precision": "float32", "data": "here"}


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
        {"label_column": "class"},
        {"temperature": 4.0},
        {"drop_path": 0.0},
        {"recover": "none", "recover_epochs": 7, "recover_refit": "off"},
        {"profile": "quick", "image_size": 224, "epochs": 300, "min_steps": 0, "learning_rate": 1.25e-4,
         "warmup": 1 / 6, "clip_norm": None},
    ],
    ids=str,
)  # fmt: skip
def test_where_and_how_a_run_is_told_does_not_change_who_it_is(changes: dict[str, Any]) -> None:
    assert run_id(**changes) == run_id()


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1}, {"fraction": 0.5}, {"method": "selection"}, {"learning_rate": 1e-3}, {"temperature": 3.0},
        {"threads": 2}, {"precision": "bf16"}, {"rule": "random"}, {"swap_roles": True}, {"split_seed": 1},
        {"split_duplicates": True}, {"student": "vit_tiny_patch16_224"}, {"profile": "quick"},
        {"images": "others"}, {"teacher_": "another"}, {"develop": True}, {"recover": "labelled"},
        {"recover": "unlabelled"},
    ],
    ids=str,
)  # fmt: skip
def test_what_changes_numbers_changes_who_it_is(changes: dict[str, Any]) -> None:
    changes = {("teacher" if name == "teacher_" else name): value for name, value in changes.items()}
    assert run_id(**changes) != run_id()


def image_index() -> ImageIndex:
    rows = tuple(ImageRow(path=f"{n}.png", image=ImageRef(Path(f"{n}.png")), label="ab"[n % 2]) for n in range(4))
    return ImageIndex(source="here", rows=rows, classes=("a", "b"))


def test_images_are_known_by_pixels_labels_patients_and_order_not_by_paths() -> None:
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


def test_a_teacher_in_files_is_known_by_what_is_in_them(tmp_path: Path) -> None:
    first, again = save_vit_teacher(tmp_path / "first"), save_vit_teacher(tmp_path / "again")
    other = save_vit_teacher(tmp_path / "other", seed=1)
    assert teacher_fingerprint(first) == teacher_fingerprint(again)
    assert teacher_fingerprint(first) != teacher_fingerprint(other)
    file = f"vit_tiny_patch16_224@{tmp_path}/first/model.safetensors"
    assert teacher_fingerprint(file).startswith("vit_tiny_patch16_224@sha256:")
    assert str(tmp_path) not in teacher_fingerprint(first) + teacher_fingerprint(file)
    assert teacher_fingerprint("dinov2-small") == "dinov2-small"
    with pytest.raises(TwinbudError, match="expected the teacher's files, got no such file"):
        teacher_fingerprint("vit_tiny_patch16_224@none.safetensors")


def test_the_training_version_is_raised_when_the_golden_losses_change() -> None:
    """Records of an earlier version are made anew; whoever changes numbers on purpose comes by here."""
    golden = json.loads((Path(__file__).parents[1] / "training" / "golden_losses.json").read_text())
    cases = ("vit dual", "vit selection", "convnext dual", "convnext selection", "recovered")
    losses = [[f"{step['loss']:.4f}" for step in golden[case]] for case in cases]
    checksum = hashlib.sha256(json.dumps(losses).encode()).hexdigest()[:16]
    assert {TRAINING_VERSION: checksum} == {1: "eacd1cc6809caf71"}


LEAST_SQUARES = [{"recover_views": 4}, {"recover_memory": 2.0}]
MATCHING = [
    {"recover_target": "own"},
    {"recover_blocks": True},
    {"recover_batch_size": 8},
    {"recover_learning_rate": 1e-4},
]


@pytest.mark.parametrize("changes", [{"recover_epochs": 7}, {"recover_refit": "off", "recover_epochs": 1}], ids=str)
def test_the_steps_of_recovery_count_where_something_is_recovered(changes: dict[str, Any]) -> None:
    assert run_id(recover="labelled", **changes) != run_id(recover="labelled")


@pytest.mark.parametrize("changes", LEAST_SQUARES + MATCHING, ids=str)
def test_settings_of_a_step_of_recovery_count_where_it_is_taken(changes: dict[str, Any]) -> None:
    both: dict[str, Any] = {"recover": "labelled", "recover_epochs": 7}
    one = {**both, **({"recover_refit": "off"} if changes in LEAST_SQUARES else {"recover_epochs": 0})}
    assert run_id(**both, **changes) != run_id(**both)
    assert run_id(**one, **changes) == run_id(**one)


def test_steps_of_recovery_that_are_smaller_deep_down_are_others_than_those_of_before() -> None:
    """As commit 1628b40 knew them, when their learning rate was the same for all layers."""
    assert run_id(recover="labelled", recover_epochs=7) == "24a1367e066580d3f980"
    assert run_id(recover="labelled", recover_epochs=7, layer_decay=0.65) != "eba23525e53afa589127"


def test_a_recovery_is_who_it_was_before_there_was_a_choice_of_memory() -> None:
    """As commit b6ff39b knew it."""
    assert run_id(profile="best") == "1a6995b873dbaa62c044"


def test_a_run_without_what_came_later_is_who_it_was_before_there_was_a_choice() -> None:
    """As commit 30eb12c knew it, before recovery and ``develop``: records of that time still count."""
    assert run_id() == "af7af235d3da68777441"
