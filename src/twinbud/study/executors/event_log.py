"""Events in files, for workers that share nothing with the driver but a folder: one JSON object a line."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from twinbud.study.executors.base import (
    Event,
    RunFailed,
    RunFinished,
    RunInterrupted,
    RunStarted,
    StepsTaken,
)

STEP_EVENT_SECONDS = 0.5
"""Time between two events about the steps of a run."""
_KINDS = {kind.__name__: kind for kind in (RunStarted, StepsTaken, RunFinished, RunFailed, RunInterrupted)}
_SUFFIX = ".events"


class StepFilter:
    """Tells which events a display needs: not every step."""

    def __init__(self) -> None:
        self.last_step = 0.0

    def needs(self, event: Event) -> bool:
        """Return whether to pass an event on."""
        if isinstance(event, StepsTaken) and event.num_steps:
            now = time.monotonic()
            if now - self.last_step < STEP_EVENT_SECONDS:
                return False
            self.last_step = now
        return True


class EventLog:
    """Appends the events of one worker to a file of its own.

    Args:
        folder: The folder of all workers' files.
        worker: Name of the worker.
    """

    def __init__(self, folder: Path, worker: str) -> None:
        self.path, self.filter = folder / f"{worker}{_SUFFIX}", StepFilter()

    def __call__(self, event: Event) -> None:
        """Append an event."""
        if self.filter.needs(event):
            line = json.dumps({"kind": type(event).__name__, **asdict(event)})
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


class EventReader:
    """Reads what the workers have appended since the last call.

    Args:
        folder: The folder of all workers' files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.positions: dict[Path, int] = {}

    def __call__(self) -> Iterator[Event]:
        """Yield new events; a line that is not complete yet is left for the next call."""
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            with path.open("rb") as file:
                file.seek(self.positions.get(path, 0))
                content = file.read()
            complete = content[: content.rfind(b"\n") + 1]
            self.positions[path] = self.positions.get(path, 0) + len(complete)
            for line in complete.splitlines():
                try:
                    fields = json.loads(line)
                except ValueError:  # a worker that was killed left the start of the line
                    continue
                yield _KINDS[fields.pop("kind")](**fields)
