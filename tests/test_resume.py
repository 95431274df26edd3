"""Runs killed as a user's machine would kill them, and gone on with by the command line."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from killing import at_random, finish, has_finished, inside_a_save, kill_once, results, small_run, wait_for

MOMENTS = (at_random, inside_a_save, at_random, at_random, at_random, at_random)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return small_run(tmp_path_factory.mktemp("resume"))


def test_a_run_killed_at_random_moments_ends_like_an_uninterrupted_one(command: list[str], tmp_path: Path) -> None:
    """SIGKILL at six moments, one of them inside a save, checkpoints at every epoch; ``make soak`` kills 60 times."""
    finish(command, tmp_path / "whole")
    generator = random.Random(0)
    killed = 0
    for moment in MOMENTS:
        killed += kill_once(command, tmp_path / "killed", moment, generator)
        if has_finished(tmp_path / "killed"):
            break
    assert killed >= 2
    if not has_finished(tmp_path / "killed"):
        finish([*command, "--resume"], tmp_path / "killed")
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    assert not (tmp_path / "killed" / "checkpoints").exists()


def test_a_terminated_run_says_how_to_go_on_and_does(command: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    longer = [*command, "--epochs", "200"]
    process = subprocess.Popen([*longer, "--output", str(run)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    wait_for(run / "checkpoints", process)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert errors.decode().splitlines()[-1].endswith("the same command with --resume goes on from there")
    assert "stopped after step" in (run / "UNFINISHED").read_text()
    done = finish([*longer, "--resume"], run)
    assert "going on after step" in done.stderr
    again = subprocess.run(
        [*longer, "--resume", "--output", str(run)], capture_output=True, text=True, timeout=60, check=False
    )
    assert again.returncode == 2
    assert "expected an unfinished run to resume, got a finished one" in again.stderr


def test_other_settings_do_not_go_on_from_a_checkpoint(command: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen([*command, "--epochs", "200", "--output", str(run)], stderr=subprocess.DEVNULL)
    wait_for(run / "checkpoints", process)
    process.terminate()
    process.wait(timeout=60)
    other = subprocess.run(
        [*command, "--epochs", "200", "--beta", "0.5", "--resume", "--output", str(run)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert other.returncode == 2
    assert "other ones (beta)" in other.stderr.splitlines()[-1]
