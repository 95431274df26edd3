"""Runs killed as a user's machine would kill them, and gone on with by the command line."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from builders import save_images, save_vit_teacher

NUM_KILLS = 6


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("resume")
    images = save_images(folder / "images", {"bright": 12, "dark": 12})
    teacher = save_vit_teacher(folder / "teacher")
    return [
        *(sys.executable, "-m", "twinbud", "train", "--data", str(images), "--teacher", teacher),
        *("--image-size", "28", "--epochs", "30", "--batch-size", "4", "--threads", "1", "--precision", "float32"),
        *("--checkpoint-seconds", "0"),
    ]


def finish(command: list[str], output: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done


def results(run: Path) -> list[bytes]:
    history = [line.split(b",")[:7] for line in (run / "history.csv").read_bytes().splitlines()]
    return [
        (run / "model" / "model.safetensors").read_bytes(),
        (run / "predictions.csv").read_bytes(),
        b"\n".join(b",".join(cells) for cells in history),
    ]


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.002)


def test_a_run_killed_at_random_moments_ends_like_an_uninterrupted_one(command: list[str], tmp_path: Path) -> None:
    """SIGKILL between a hundredth and a second after the first file of a run, checkpoints at every epoch."""
    finish(command, tmp_path / "whole")
    generator = random.Random(0)
    killed = 0
    for _ in range(NUM_KILLS):
        process = subprocess.Popen(
            [*command, "--resume", "--output", str(tmp_path / "killed")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        (tmp_path / "killed" / "environment.json").unlink(missing_ok=True)
        wait_for(tmp_path / "killed" / "environment.json", process)
        time.sleep(generator.uniform(0.01, 0.6))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        if not (tmp_path / "killed" / "UNFINISHED").exists():
            break
    assert killed >= 2
    if (tmp_path / "killed" / "UNFINISHED").exists():
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
