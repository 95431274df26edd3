"""Whole runs of the self-distillation variants, and of the controls of the auxiliary."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from helpers.command import refusal, train, trained
from helpers.command import twinbud as command
from helpers.stopping import sigterm_at_step
from twinbud.config.effects import numeric_settings
from twinbud.config.loading import run_config
from twinbud.config.schema import TEACHER_TARGETS, Distillation
from twinbud.runs.resource_cache import initialization_key
from twinbud.study.estimate import measure_step
from twinbud.training.train_step import TrainingStep

VARIANTS = [variant for variant in get_args(Distillation) if variant not in ("skd", *TEACHER_TARGETS)]
"""The variants of Table 6."""


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


def history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open(encoding="utf-8", newline="") as file:
        return [{name: text for name, text in row.items() if name != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture
def method_run(shared_runs: Callable[..., Path]) -> Path:
    """Two epochs of the method as the paper has it; to be read only."""
    return shared_runs("--epochs", 2)


def test_no_auxiliary_is_selection_bit_for_bit(shared_runs: Callable[..., Path]) -> None:
    """L = L_ce, and not α L_ce."""
    none, selection = shared_runs("--auxiliary", "none"), shared_runs("--method", "selection")
    assert weights(none) == weights(selection)
    assert (none / "predictions.csv").read_bytes() == (selection / "predictions.csv").read_bytes()
    assert history(none) == history(selection)
    assert (none / "plan.json").read_bytes() == (selection / "plan.json").read_bytes()


@pytest.mark.parametrize("distillation", VARIANTS)
def test_every_variant_trains_otherwise_and_is_named(
    shared_runs: Callable[..., Path], method_run: Path, tmp_path: Path, distillation: str
) -> None:
    run = shared_runs("--distillation", distillation, "--epochs", 2)
    assert weights(run) != weights(method_run)
    # in its first epoch, tf-kd has nothing to go by but S′
    assert (history(run)[0] == history(method_run)[0]) == (distillation == "tf-kd")
    assert all(row["loss_skd"] != "" for row in history(run))
    assert f"{distillation}: " in (run / "report.html").read_text(encoding="utf-8")
    assert yaml.safe_load((run / "config.yaml").read_text())["distillation"] == distillation
    again = command("train", "--config", run / "config.yaml", "--output", tmp_path / "again")
    assert again.code == 0, again.err
    assert weights(tmp_path / "again") == weights(run)


@pytest.mark.parametrize(
    ("auxiliary", "named"), [("copy", "starts as a copy of the student"), ("frozen", "keeps its selected weights")]
)
def test_every_control_trains_otherwise_and_is_named(
    shared_runs: Callable[..., Path], shared_run: Path, auxiliary: str, named: str
) -> None:
    run = shared_runs("--auxiliary", auxiliary)
    assert weights(run) != weights(shared_run)
    assert named in (run / "report.html").read_text(encoding="utf-8")
    assert named not in (shared_run / "report.html").read_text(encoding="utf-8")


def test_a_frozen_auxiliary_takes_no_notice_of_beta(shared_images: Path, shared_teacher: str, tmp_path: Path) -> None:
    runs = [
        trained(shared_images, shared_teacher, tmp_path / beta, "--auxiliary", "frozen", "--beta", beta)
        for beta in ("0.0", "0.9")
    ]
    assert weights(runs[0]) == weights(runs[1])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--method", "selection", "--distillation", "cs-kd"),
            "--distillation: 'cs-kd' contradicts --method selection, which has no auxiliary. "
            "Give --distillation skd or teacher, or --method dual.",
        ),
        (
            ("--method", "timm", "--distillation", "tf-kd-reg"),
            "--distillation: 'tf-kd-reg' contradicts --method timm, whose soft targets can only be those of a teacher. "
            "Give --distillation skd or teacher, or --method dual.",
        ),
        (
            ("--method", "probe", "--distillation", "cs-kd"),
            "--distillation: 'cs-kd' contradicts --method probe, which learns from labels alone. "
            "Give --distillation skd.",
        ),
        (
            ("--method", "probe", "--tune-teacher"),
            "--tune-teacher: --method probe takes nothing from the teacher. "
            "Give --no-tune-teacher, or --method selection.",
        ),
        (
            ("--method", "timm", "--epochs", "0"),
            "--epochs: 0 would deliver a classifier that nothing has trained. Give at least 1.",
        ),
        (
            ("--method", "kaiming", "--auxiliary", "frozen"),
            "--auxiliary: 'frozen' contradicts --method kaiming, which has no auxiliary. "
            "Give --auxiliary other, or --method dual.",
        ),
        (
            ("--auxiliary", "none", "--distillation", "tf-kd"),
            "--distillation: 'tf-kd' contradicts --auxiliary none. Give --distillation skd or teacher.",
        ),
        (
            ("--auxiliary", "copy", "--distillation", "tf-kd-self"),
            "--auxiliary: 'copy' contradicts --distillation tf-kd-self, whose targets do not come from the auxiliary. "
            "Give --auxiliary other.",
        ),
        (
            ("--distillation", "cskd"),
            "--distillation: 'cskd' is not one of skd, cs-kd, cs-kd-pair, tf-kd, tf-kd-self, tf-kd-reg, teacher, "
            "skd+teacher. "
            "Did you mean 'cs-kd'?",
        ),
    ],
)
def test_words_that_contradict_each_other_are_refused_before_anything_is_read(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    answer = command(
        "train",
        "--data",
        tmp_path / "nothing",
        "--teacher",
        "absent",
        "--output",
        tmp_path / "run",
        "--profile",
        "paper",
        *words,
    )
    assert refusal(answer) == said
    assert not (tmp_path / "run").exists()


def test_the_checkpoint_of_a_run_is_that_of_its_variant(tmp_path: Path) -> None:
    settings = numeric_settings(
        run_config({"profile": "paper", "data": "phantom", "teacher": "dinov2-small"}, output=tmp_path)
    )
    assert (settings["distillation"], settings["auxiliary"]) == ("skd", "other")


@pytest.mark.parametrize(
    ("model", "training", "built"),
    [
        ({}, {}, "other"),
        ({"auxiliary": "frozen"}, {"distillation": "cs-kd"}, "frozen"),
        ({"method": "selection"}, {}, "none"),
        ({}, {"distillation": "tf-kd-self"}, "none"),
        ({}, {"distillation": "tf-kd-reg"}, "none"),
    ],
)
def test_an_auxiliary_is_built_only_where_it_is_used(
    model: dict[str, Any], training: dict[str, Any], built: str, tmp_path: Path
) -> None:
    settings = {"profile": "paper", "data": "phantom", "teacher": "dinov2-small"} | model | training
    assert run_config(settings, output=tmp_path).auxiliary == built


def test_runs_of_one_process_do_not_share_an_auxiliary_that_only_one_of_them_has(tmp_path: Path) -> None:
    settings = {"profile": "paper", "data": "phantom", "teacher": "dinov2-small"}
    keys = [
        initialization_key(run_config(settings | {"distillation": variant}, output=tmp_path))
        for variant in ("skd", "cs-kd", "tf-kd-reg")
    ]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("distillation", [*VARIANTS, *TEACHER_TARGETS])
def test_a_study_can_tell_how_long_a_variant_takes(shared_teacher: str, tmp_path: Path, distillation: str) -> None:
    settings = {
        "profile": "paper", "data": "phantom", "teacher": shared_teacher, "image_size": 28, "batch_size": 4,
        "distillation": distillation, "precision": "float32",
    }  # fmt: skip
    config = run_config(settings, output=tmp_path)
    assert measure_step(config) > 0
    assert config.training.num_phases == (2 if distillation == "tf-kd-self" else 1)


def test_both_phases_of_tf_kd_self_are_counted(shared_runs: Callable[..., Path], shared_run: Path) -> None:
    run = shared_runs("--distillation", "tf-kd-self", "--epochs", 2)
    assert (metrics(run)["epochs"], metrics(run)["num_steps"]) == (2, 4 * metrics(shared_run)["num_steps"])
    assert [row["step"] for row in history(run)] == ["3", "6"]
    assert metrics(run)["train_seconds"] > 0
    assert not (run / "checkpoints").exists()


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_a_signal_in_either_phase_stops_a_run_that_goes_on_exactly(
    shared_images: Path, shared_teacher: str, shared_runs: Callable[..., Path], tmp_path: Path, steps: int
) -> None:
    """Of six steps a phase: inside an epoch of the first, and of the second."""
    words = ("--distillation", "tf-kd-self", "--epochs", 2)
    whole = shared_runs(*words)
    run = tmp_path / "run"
    with sigterm_at_step(TrainingStep, steps):
        stopped = train(shared_images, shared_teacher, run, *words)
    assert stopped.code == 75, stopped.err
    assert (run / "checkpoints" / "first-phase").is_dir()
    resumed = train(shared_images, shared_teacher, run, *words, "--resume")
    assert resumed.code == 0, resumed.err
    in_first, phase = steps <= 6, "training the auxiliary" if steps <= 6 else "training the student"
    assert f"{phase}: going on after step {steps if in_first else steps - 6}" in resumed.err
    assert weights(run) == weights(whole)
    assert history(run) == history(whole)
    assert metrics(run)["num_steps"] == metrics(whole)["num_steps"]
