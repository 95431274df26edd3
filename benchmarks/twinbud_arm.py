"""``twinbud train`` as a user starts it, with clocks at the borders of its stages; options as ``task.Task``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

STARTED = "BENCH_STARTED"
"""Environment variable with ``time.time()`` of just before this process was started."""


class Clock:
    """When things began and ended, in seconds since the process was started."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.begun: dict[str, float] = {}
        self.spent: dict[str, float] = {}
        self.epoch_ends: list[float] = []

    @property
    def now(self) -> float:
        """Seconds since the process was started."""
        return time.time() - self.started

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = self.now
            self.begun.setdefault(name, begun)
            try:
                return function(*args, **kwargs)
            finally:
                self.spent[name] = self.spent.get(name, 0.0) + self.now - begun

        return timed

    def after_each_epoch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, and a note of when it ended."""

        def noted(*args: Any, **kwargs: Any) -> Any:
            function(*args, **kwargs)
            self.epoch_ends.append(self.now)

        return noted


def main() -> None:
    """Train, and write the measurements."""
    clock = Clock(float(os.environ.get(STARTED, time.time())))
    from task import Task, write_result
    from twinbud.cli.main import main as twinbud
    from twinbud.report.history import HistoryWriter
    from twinbud.runs import pipeline as stages

    task = Task.from_command_line(__doc__)
    pipeline: Any = stages  # its names are replaced
    pipeline.fit = clock.around("training", pipeline.fit)
    pipeline.predict_rows = clock.around("test", pipeline.predict_rows)
    HistoryWriter.__call__ = clock.after_each_epoch(HistoryWriter.__call__)
    run = task.result.with_suffix(".run")
    code = twinbud(["train", *words(task, run)])
    if code:
        sys.exit(code)
    write_result(task, measurements(clock, run))


def words(task: Any, run: Path) -> list[str]:
    """The options of ``twinbud train``."""
    return [
        *("--data", task.data, "--fraction", str(task.fraction), "--selected", str(task.selected)),
        *("--method", task.method, "--profile", task.profile, "--min-steps", "0", "--epochs", str(task.epochs)),
        *("--image-size", str(task.image_size), "--precision", task.precision, "--device", task.device),
        *("--near-duplicates", "ignore", "--output", str(run)),
    ]


def measurements(clock: Clock, run: Path) -> dict[str, Any]:
    """From the clocks and the run's own figures."""
    import json

    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    ends = [clock.begun["training"], *clock.epoch_ends]
    return {
        "num_train": metrics["num_train"],
        "num_test": metrics["num_test"],
        "accuracy": metrics["accuracy"],
        "epoch_seconds": [after - before for before, after in pairwise(ends)],
        "peak_mib": metrics["peak_memory_mib"],
        "before_mib": metrics["memory_before_training_mib"],
        "to_training_seconds": clock.begun["training"],
        "in_epochs_seconds": metrics["train_seconds"],
        "test_seconds": clock.spent["test"],
    }


if __name__ == "__main__":
    main()
