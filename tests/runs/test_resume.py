"""Runs killed as a user's machine would kill them, and gone on with by the command line."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from helpers.builders import save_vit_teacher
from helpers.command import SMALL, Answer, refusal, twinbud
from helpers.killing import (
    RECOVERING,
    at_its_first_checkpoint,
    at_random,
    finish,
    has_finished,
    inside_a_save,
    is_recovering,
    kill_once,
    results,
    small_run,
    wait_for,
)
from helpers.processes import start
from twinbud.runs import pipeline
from twinbud.training import amp

MOMENTS = (at_random, inside_a_save, at_random)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return small_run(tmp_path_factory.mktemp("resume"))


@pytest.mark.parametrize("settings", [(), RECOVERING], ids=["trained", "recovered"])
def test_a_run_killed_at_random_moments_ends_like_an_uninterrupted_one(
    settings: tuple[str, ...], command: list[str], tmp_path: Path
) -> None:
    """SIGKILL at up to three moments, one inside a save, checkpoints at every epoch; ``make soak`` kills 60 times."""
    command = [*command, *settings]
    finish(command, tmp_path / "whole")
    generator = random.Random(0)
    killed, moments = 0, MOMENTS
    if settings == RECOVERING:
        killed += kill_once(command, tmp_path / "killed", at_its_first_checkpoint, generator)
        assert is_recovering(tmp_path / "killed")
        moments = MOMENTS[:2]
    for moment in moments:
        killed += kill_once(command, tmp_path / "killed", moment, generator)
        if has_finished(tmp_path / "killed"):
            break
    assert killed >= 2
    if not has_finished(tmp_path / "killed"):
        finish([*command, "--resume"], tmp_path / "killed")
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    assert not (tmp_path / "killed" / "checkpoints").exists()


@pytest.fixture(scope="module")
def stopped(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """The folder of a run that was stopped by SIGTERM after its first checkpoint, and what it said."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    process = start([*command, "--output", str(run)], run.with_suffix(".log"))
    wait_for(run / "checkpoints", process)
    process.process.terminate()
    return run, process.wait()


def test_a_terminated_run_says_how_to_go_on_and_does(
    stopped: tuple[Path, Answer], command: list[str], tmp_path: Path
) -> None:
    answer = stopped[1]
    run = Path(shutil.copytree(stopped[0], tmp_path / "run"))
    assert answer.code == 75
    assert answer.err.splitlines()[-1].endswith("continue with the same command and --resume")
    assert "stopped after step" in (run / "UNFINISHED").read_text()
    assert "going on after step" in finish([*command, "--resume"], run).err
    again = twinbud(*command, "--resume", "--output", run)
    assert "the run has finished. Nothing is left to do" in refusal(again)
    forced = twinbud(*command, "--resume", "--force", "--output", run)
    assert refusal(forced).endswith("train it again with --force and without --resume.")


def test_other_settings_do_not_go_on_from_a_checkpoint(stopped: tuple[Path, Answer], command: list[str]) -> None:
    other = twinbud(*command, "--beta", "0.5", "--resume", "--output", stopped[0])
    assert "other values of beta" in refusal(other)


def unfinished(run: Path, data: Path, monkeypatch: pytest.MonkeyPatch, *words: object) -> dict[Path, bytes]:
    """A run that failed after its last epoch, which left a checkpoint; returns what lies in its folder."""
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "evaluate_student", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            twinbud("train", "--data", data, "--output", run, *SMALL, "--checkpoint-seconds", 0, *words)
    return contents(run)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["--teacher", "--selected"])
def test_other_weights_do_not_go_on_from_a_checkpoint_and_leave_the_run_as_it_is(
    kind: str, shared_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it matter where the same weights lie."""
    places: list[object] = []
    for seed in (0, 1):
        teacher = save_vit_teacher(tmp_path / f"teacher-{seed}", seed)
        selected = tmp_path / f"selected-{seed}"
        assert twinbud("select", "--teacher", teacher, "--output", selected).code == 0
        places.append(teacher if kind == "--teacher" else selected)
    run = tmp_path / "run"
    before = unfinished(run, shared_images, monkeypatch, kind, places[0])
    words = ("train", "--data", shared_images, "--output", run, *SMALL, "--resume")
    line = refusal(twinbud(*words, kind, places[1]))
    assert "the checkpoint was saved with other values of initial weights" in line
    assert contents(run) == before
    answer = twinbud(*words, "--selected", tmp_path / "selected-0")
    assert answer.code == 0, answer.err
    assert "going on after step 3" in answer.err


def test_a_precision_that_was_measured_once_is_kept(
    shared_images: Path, shared_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {torch.float32: 1.0, torch.bfloat16: 1.0}
    monkeypatch.setattr(amp, "_matrix_product_seconds", lambda dtype: speeds[dtype])
    run, words = tmp_path / "run", ("--teacher", shared_teacher, "--precision", "auto", "--device", "cpu")
    unfinished(run, shared_images, monkeypatch, *words)
    speeds[torch.float32] = 9.0
    answer = twinbud("train", "--data", shared_images, "--output", run, *SMALL, "--resume", *words)
    assert answer.code == 0, answer.err
    environment = json.loads((run / "environment.json").read_text())
    assert environment["precision"] == "float32"
    assert environment["precision_reason"] == "as before the run was stopped"
