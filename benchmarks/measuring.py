"""One measurement is one fresh process; measurements are taken in turns, and their medians compared."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from task import Task
from twinbud_arm import STARTED

HERE = Path(__file__).resolve().parent
PROGRAMS = {"twinbud": "twinbud_arm.py", "plain loop": "plain_loop.py", "Trainer": "hf_trainer.py"}
"""What is compared, and its file."""
LIMIT = "limit.py"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One process.

    Attributes:
        wall_seconds: From the command to its end.
        epoch_seconds: An epoch's wall time, the mean of all but the first.
        num_train: Labelled images.
        peak_mib: Peak memory above that after loading.
        found: All that the process wrote.
    """

    wall_seconds: float
    epoch_seconds: float
    num_train: int
    peak_mib: float
    found: dict[str, Any] = field(repr=False, default_factory=dict)

    @property
    def images_per_second(self) -> float:
        """Of training."""
        return self.num_train / self.epoch_seconds


def run(file: str, task: Task) -> tuple[float, dict[str, Any]]:
    """Start a program of this folder with a task; its wall seconds and what it wrote."""
    command = [sys.executable, str(HERE / file), *task.options]
    start = time.perf_counter()
    environment = os.environ | {STARTED: repr(time.time()), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}\n{done.stderr[-3000:]}")
    return seconds, json.loads(task.result.read_text(encoding="utf-8"))


def measure(program: str, make_task: Callable[[Path], Task]) -> Measurement:
    """One of ``PROGRAMS`` once; ``make_task`` is told where its result goes."""
    with tempfile.TemporaryDirectory(prefix="twinbud-bench-") as folder:
        seconds, found = run(PROGRAMS[program], make_task(Path(folder, "result.json")))
    epochs = found["epoch_seconds"]
    return Measurement(
        wall_seconds=seconds,
        epoch_seconds=statistics.mean(epochs[1:] or epochs),
        num_train=found["num_train"],
        peak_mib=found["peak_mib"] - found["before_mib"],
        found=found,
    )


def measure_limit(make_task: Callable[[Path], Task]) -> dict[str, Any]:
    """What ``limit.py`` says of one model at one size."""
    with tempfile.TemporaryDirectory(prefix="twinbud-bench-") as folder:
        return run(LIMIT, make_task(Path(folder, "result.json")))[1]


def command_seconds(words: Sequence[str], repeats: int) -> float:
    """Median wall seconds of a command."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(words, check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
