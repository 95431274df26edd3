"""Runs killed as a user's machine would kill them, and gone on with by the command line."""

from __future__ import annotations

import csv
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from helpers.builders import save_images, save_vit_teacher

RECOVERING = ("--recover", "labelled", "--recover-epochs", "8", "--recover-batch-size", "4")
"""What makes the small run recover S and S′ from its teacher before it trains them."""

Moment = Callable[[Path, subprocess.Popen[bytes], random.Random], None]
"""Waits, in a run's folder and beside its process, for the time to kill it."""


def small_run(folder: Path) -> list[str]:
    """The command, but for ``--output``, of a run of a few seconds that saves a checkpoint after each epoch."""
    images = save_images(folder / "images", {"bright": 12, "dark": 12})
    teacher = save_vit_teacher(folder / "teacher")
    return [
        *(sys.executable, "-m", "twinbud", "train", "--data", str(images), "--teacher", teacher),
        *(
            "--profile",
            "paper",
            "--image-size",
            "28",
            "--epochs",
            "30",
            "--batch-size",
            "4",
            "--threads",
            "1",
            "--precision",
            "float32",
        ),
        *("--checkpoint-seconds", "0"),
    ]


def finish(command: list[str], output: Path) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    done = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done


def results(run: Path) -> list[bytes]:
    """What must be bit-identical: the model, the predictions, history and recovery but for their seconds."""
    recovery = run / "recovery.json"
    recovered = recovery.read_text().splitlines() if recovery.exists() else []
    with (run / "history.csv").open(encoding="utf-8", newline="") as file:
        history = [{name: cell for name, cell in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    return [
        (run / "model" / "model.safetensors").read_bytes(),
        (run / "predictions.csv").read_bytes(),
        repr(history).encode(),
        "\n".join(line for line in recovered if '"seconds"' not in line).encode(),
    ]


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until there is something at ``path``, or the process has ended."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.001)


def checkpoints(run: Path, pattern: str) -> set[Path]:
    """Those of every phase whose names match, while they come and go."""
    folder = run / "checkpoints"
    while True:
        with suppress(FileNotFoundError):  # one went while it was listed
            return {*folder.glob(pattern), *folder.glob(f"*/{pattern}")}


def at_random(run: Path, process: subprocess.Popen[bytes], generator: random.Random) -> None:
    """Between a hundredth and six tenths of a second after the first file of a run."""
    del run, process
    time.sleep(generator.uniform(0.01, 0.6))


def inside_a_save(run: Path, process: subprocess.Popen[bytes], generator: random.Random) -> None:
    """While a checkpoint is being written aside."""
    del generator
    while not checkpoints(run, ".step-*.draft") and process.poll() is None:
        pass


def at_an_epochs_end(run: Path, process: subprocess.Popen[bytes], generator: random.Random) -> None:
    """When a checkpoint of an epoch has just got its name."""
    del generator
    before = checkpoints(run, "step-*")
    while checkpoints(run, "step-*") <= before and process.poll() is None:
        pass


def during_evaluation(run: Path, process: subprocess.Popen[bytes], generator: random.Random) -> None:
    """Between the end of training, which writes the history, and the result."""
    wait_for(run / "history.csv", process)
    time.sleep(generator.uniform(0, 0.02))


def at_its_first_checkpoint(run: Path, process: subprocess.Popen[bytes], generator: random.Random) -> None:
    """As soon as it has one: one of recovery, in a run that recovers."""
    del generator
    while not checkpoints(run, "step-*") and process.poll() is None:
        pass


MOMENTS: tuple[Moment, ...] = (at_random, inside_a_save, at_an_epochs_end, during_evaluation)


def kill_once(command: list[str], run: Path, moment: Moment, generator: random.Random) -> bool:
    """Begin the run or go on with it, and send SIGKILL at the moment; whether it was still at work."""
    for name in ("environment.json", "history.csv"):
        (run / name).unlink(missing_ok=True)
    process = subprocess.Popen(
        [*command, "--resume", "--output", str(run)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(run / "environment.json", process)
    moment(run, process, generator)
    process.kill()
    return process.wait() == -signal.SIGKILL


def is_recovering(run: Path) -> bool:
    """Whether the run has checkpoints of recovery and none of training yet."""
    folder = run / "checkpoints"
    return any(folder.glob("recovery-*/step-*")) and not any(folder.glob("step-*"))


def has_finished(run: Path) -> bool:
    """Whether the run has its result."""
    return (run / "metrics.json").exists() and not (run / "UNFINISHED").exists()
