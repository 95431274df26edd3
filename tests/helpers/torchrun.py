"""Runs in two processes that ``torchrun`` itself starts, and Ctrl-C as a terminal sends it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "twinbud")


def finish_under_torchrun(words: list[str], output: Path) -> None:
    """Run to the end."""
    subprocess.run([*TORCHRUN, *words, "--output", str(output)], check=True, capture_output=True)


def interrupt_under_torchrun(words: list[str], output: Path, generator: random.Random) -> list[str]:
    """Start a run, send Ctrl-C after its first checkpoint, and return what was wrong: nothing, if all was well."""
    log = output.with_suffix(".log")
    with log.open("wb") as file:
        command = [*TORCHRUN, *words, "--output", str(output)]
        started = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    while not (output / "checkpoints").exists() and started.poll() is None:
        time.sleep(0.01)
    time.sleep(generator.uniform(0, 0.5))
    os.killpg(started.pid, signal.SIGINT)
    started.wait(120)
    said = [line for line in log.read_text().splitlines() if line.startswith("twinbud: ")]
    problems = []
    if len(said) != 1 or not said[0].endswith("continue with the same command and --resume"):
        problems.append(f"Ctrl-C under torchrun: {len(said)} lines of twinbud: {said}")
    try:
        os.killpg(started.pid, signal.SIGKILL)
    except ProcessLookupError:
        return problems
    return [*problems, "Ctrl-C under torchrun left a process behind"]
