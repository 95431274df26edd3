"""The interface of an executor: a protocol, the assignment it receives and the events it reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from twinbud.study.grid import PlannedRun
from twinbud.study.store import RunStore


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The runs to execute, and the options that all of them share. Can be pickled.

    Attributes:
        store: The runs folder, with records, claims and the folders of the runs.
        runs: The runs to execute, in order.
        earlier_failures: Time of failure of each run that failed before this study started, by run id. These runs are
            tried again; a run that fails later is not.
        threads: CPU threads of each run.
        keep_models: Whether run folders keep the trained model.
        pixel_cache: Whether decoded images are cached on the disk for other processes.
        local_settings: Settings that replace those of the runs where they are executed: the paths of images and
            teachers on that machine, and the device. Records keep the settings of the runs.
        machine: Name of the machine that executes the runs, for the reasons of failures; None for this one.
    """

    store: RunStore
    runs: Sequence[PlannedRun]
    earlier_failures: Mapping[str, str]
    threads: int
    keep_models: bool = False
    pixel_cache: bool = True
    local_settings: Mapping[str, Any] = field(default_factory=dict)
    machine: str | None = None

    def is_settled(self, run_id: str) -> bool:
        """Return whether the run has a record, or has failed since this study started."""
        if self.store.is_done(run_id):
            return True
        failure = self.store.read_failure(run_id)
        return failure is not None and failure.time != self.earlier_failures.get(run_id)


@dataclass(frozen=True)
class RunStarted:
    """A worker has claimed the run and starts or resumes it."""

    run_id: str


@dataclass(frozen=True)
class StepsTaken:
    """The run has taken optimizer steps, or has entered a phase without steps.

    Attributes:
        run_id: The run.
        num_steps: Optimizer steps so far, over all phases.
        text: The phase, or the epoch and loss.
    """

    run_id: str
    num_steps: int
    text: str = ""


@dataclass(frozen=True)
class RunFinished:
    """The run has a record; ``text`` is its result in a few words."""

    run_id: str
    text: str


@dataclass(frozen=True)
class RunFailed:
    """The run has failed and is not tried again by this study."""

    run_id: str
    reason: str


@dataclass(frozen=True)
class RunInterrupted:
    """The worker died during the run; another worker resumes it."""

    run_id: str
    reason: str


@dataclass(frozen=True)
class Waiting:
    """Nothing has happened for a moment. Lets the caller refresh its display."""


Event = RunStarted | StepsTaken | RunFinished | RunFailed | RunInterrupted | Waiting
OnEvent = Callable[[Event], None]


class Executor(Protocol):
    """Executes the runs of a study.

    An executor starts workers, wherever they are, and each of them calls ``execute_pending_runs``. Claims and records
    lie in the runs folder, so several executors can work on one folder at the same time.
    """

    @property
    def num_workers(self) -> int:
        """Number of runs that are executed at the same time, at most."""
        ...

    def run(self, assignment: Assignment, on_event: OnEvent) -> None:
        """Return when every run has a record or has failed.

        Args:
            assignment: The runs.
            on_event: Receives every event, in the caller's thread.

        Raises:
            Stopped: The system requested a stop; runs in progress are saved.
            TwinbudError: Workers cannot be started, or the runs folder cannot be written.
        """
        ...
