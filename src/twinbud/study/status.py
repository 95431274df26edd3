"""The status of a running study, computed from the events of its executor and the runs folder."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from twinbud.study.executors.base import (
    Assignment,
    Event,
    RunFailed,
    RunFinished,
    RunInterrupted,
    RunStarted,
    StepsTaken,
)
from twinbud.study.grid import PlannedRun

_SCAN_SECONDS = 1.0
"""Time between two scans of the runs folder for runs that other processes have finished."""


@dataclass(kw_only=True)
class StudyStatus:
    """Progress of a running study.

    Attributes:
        num_runs: Runs of the study.
        num_done: Runs with a record, those of other processes included.
        num_failed: Runs that have failed since the study started.
        num_interrupted: How often a worker has died during a run.
        running: The latest event of each run in progress here, by run id.
        seconds_left: Estimated time to the end, or None before a step was timed.
        message: One line about the latest event, or an empty string.
    """

    num_runs: int
    num_done: int = 0
    num_failed: int = 0
    num_interrupted: int = 0
    running: dict[str, StepsTaken] = field(default_factory=dict)
    seconds_left: float | None = None
    message: str = ""


OnStatus = Callable[[StudyStatus], None]


class StatusTracker:
    """Updates a ``StudyStatus`` with each event.

    Args:
        assignment: The runs without a record when the study starts.
        num_done: Runs that had a record before.
        tuned: Ids of the fine-tuning that is done; see ``SharedTuning``.
    """

    def __init__(self, assignment: Assignment, num_done: int, tuned: Collection[str] = ()) -> None:
        self.assignment = assignment
        self.labels = {run.run_id: run.label for run in assignment.runs}
        self.unsettled = set(self.labels)
        self.status = StudyStatus(num_runs=num_done + len(self.labels), num_done=num_done)
        self.timer = _StepTimer(assignment.runs, tuned)
        self.last_scan = time.monotonic()

    def update(self, event: Event) -> StudyStatus:
        """Apply an event.

        Returns:
            The same object at each call.
        """
        self.status.message = ""
        if isinstance(event, RunStarted):
            self.status.running[event.run_id] = StepsTaken(event.run_id, 0, "starting")
        elif isinstance(event, StepsTaken):
            self.status.running[event.run_id] = event
            self.timer.step(event.run_id, event.num_steps)
        elif isinstance(event, RunFinished):
            self.timer.finish(event.run_id)
            self._settle(event.run_id, has_failed=False)
            self._report(event.run_id, event.text)
        elif isinstance(event, RunFailed):
            self._settle(event.run_id, has_failed=True)
            self._report(event.run_id, event.reason)
        elif isinstance(event, RunInterrupted):
            self.status.num_interrupted += 1
            self._report(event.run_id, f"{event.reason}; another worker resumes the run")
        if time.monotonic() - self.last_scan >= _SCAN_SECONDS:
            self.scan()
        self.status.seconds_left = self.timer.seconds_left()
        return self.status

    def scan(self) -> None:
        """Count runs that other processes have settled."""
        self.last_scan = time.monotonic()
        for run_id in self.unsettled & self.assignment.store.done_ids():
            self._settle(run_id, has_failed=False)
        for run_id in self.unsettled & self.assignment.store.failed_ids():
            if self.assignment.is_settled(run_id):
                self._settle(run_id, has_failed=True)

    def _settle(self, run_id: str, *, has_failed: bool) -> None:
        if run_id in self.unsettled:
            self.unsettled.remove(run_id)
            self.timer.settle(run_id, has_failed=has_failed)
            self.status.num_failed += has_failed
            self.status.num_done += not has_failed

    def _report(self, run_id: str, text: str) -> None:
        """End the run's line among those in progress, with a message."""
        self.status.running.pop(run_id, None)
        self.status.message = f"{self.labels[run_id]}: {text}"


class _StepTimer:
    """Estimates the remaining time from the steps taken so far.

    Args:
        runs: The runs to execute. Fine-tuning that several of them share is counted once, also on a cluster without a
            common folder, where each node repeats it.
        tuned: Ids of the fine-tuning that is done.
    """

    def __init__(self, runs: Iterable[PlannedRun], tuned: Collection[str]) -> None:
        self.stages = {run.run_id: _stages(run) for run in runs}
        self.num_steps = {stage: num for stages in self.stages.values() for stage, num in stages.items()}
        self.num_unsettled = Counter(stage for stages in self.stages.values() for stage in stages)
        """Runs that are not settled, by stage."""
        self.reached = dict[str, int]()
        self.num_left = sum(self.num_steps.values())
        self.num_timed = 0
        """Steps taken since ``start``."""
        self.start = 0.0
        for stage in self.num_steps.keys() & map(_tuning_stage, tuned):
            self._reach(stage, self.num_steps[stage])

    def step(self, run_id: str, reached: int) -> None:
        for stage, num_steps in self.stages[run_id].items():
            self._step(stage, min(reached, num_steps))
            reached -= min(reached, num_steps)

    def _step(self, stage: str, reached: int) -> None:
        if reached == 0:
            return
        self.start = self.start or time.monotonic()
        if stage in self.reached:  # a resumed run starts at its checkpoint: its first steps were not timed
            if stage not in self.stages:  # shared: another run may begin it again
                reached = max(reached, self.reached[stage])
            self.num_timed += max(0, reached - self.reached[stage])
        self._reach(stage, reached)

    def _reach(self, stage: str, reached: int) -> None:
        self.num_left -= reached - self.reached.get(stage, 0)
        self.reached[stage] = reached

    def finish(self, run_id: str) -> None:
        """Count the steps of a run in progress as taken."""
        for stage in self.stages[run_id].keys() & self.reached.keys():
            self._step(stage, self.num_steps[stage])

    def settle(self, run_id: str, *, has_failed: bool) -> None:
        """Stop counting the remaining steps of a run; fine-tuning that failed is left for the runs that share it."""
        for stage, num_steps in self.stages[run_id].items():
            self.num_unsettled[stage] -= 1
            if not has_failed or not self.num_unsettled[stage]:
                self._reach(stage, num_steps)

    def seconds_left(self) -> float | None:
        if self.num_timed <= 0:
            return None
        return self.num_left * (time.monotonic() - self.start) / self.num_timed


def _stages(run: PlannedRun) -> dict[str, int]:
    """Return the steps of the fine-tuning, if there is one, and of all that follows, in this order."""
    if run.tuning is None:
        return {run.run_id: run.num_steps}
    num_steps = run.tuning.num_steps
    return {_tuning_stage(run.tuning.tuning_id): num_steps, run.run_id: run.num_steps - num_steps}


def _tuning_stage(tuning_id: str) -> str:
    return f"tuning {tuning_id}"
