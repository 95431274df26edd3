"""The loop of every worker: claim a run, execute it, until no run is left.

Importing this module does not import torch: a worker sets its CPU cores and threads first.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from twinbud.core.errors import Stopped, TwinbudError, writes_to
from twinbud.core.progress import Advance, BarKind
from twinbud.study.executors.base import Assignment, OnEvent, RunFailed, RunFinished, RunStarted, StepsTaken
from twinbud.study.grid import PlannedRun

if TYPE_CHECKING:
    from twinbud.runs.resource_cache import ResourceCache

_POLL_SECONDS = 0.5
"""Time between two checks of the claims of other processes."""


@writes_to("--runs")
def execute_pending_runs(
    assignment: Assignment,
    on_event: OnEvent,
    *,
    num_workers: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Execute every run that no other process has claimed, one at a time; return when all runs are settled.

    If the process that holds a claim dies, its run is executed here.

    Args:
        assignment: The runs.
        on_event: Receives the events of the runs that are executed here.
        num_workers: How many runs share the machine, for the records.
        should_stop: Called between runs.

    Raises:
        Stopped: The system requested a stop during a run.
        TwinbudError: The runs folder cannot be written.
    """
    from twinbud.runs.resource_cache import ResourceCache

    resource_cache, pending = ResourceCache(), list(assignment.runs)
    while pending:
        claimed_elsewhere = []
        for run in pending:
            if should_stop():
                return
            if not settle_run(assignment, run, resource_cache, on_event, num_workers):
                claimed_elsewhere.append(run)
        if len(claimed_elsewhere) == len(pending):
            time.sleep(_POLL_SECONDS)
        pending = claimed_elsewhere


def settle_run(
    assignment: Assignment, run: PlannedRun, resource_cache: ResourceCache, on_event: OnEvent, num_workers: int
) -> bool:
    """Execute the run unless it is settled.

    Args:
        assignment: The store and the options of the run.
        run: The run.
        resource_cache: Images, teachers and selections of earlier runs of this process.
        on_event: Receives the events of the run.
        num_workers: How many runs share the machine, for the record.

    Returns:
        Whether the run is settled; False if another process holds its claim.

    Raises:
        Stopped: The system requested a stop during the run.
        TwinbudError: The runs folder cannot be written.
    """
    if assignment.is_settled(run.run_id):
        return True
    with assignment.store.claim(run.run_id) as is_claimed:
        if is_claimed and not assignment.is_settled(run.run_id):
            _execute(assignment, run, resource_cache, on_event, num_workers)
        return is_claimed


def _execute(
    assignment: Assignment, run: PlannedRun, resource_cache: ResourceCache, on_event: OnEvent, num_workers: int
) -> None:
    from twinbud.study.execute import execute_run

    on_event(RunStarted(run.run_id))
    try:
        text = execute_run(
            run,
            assignment.store,
            resource_cache,
            _EventProgress(run.run_id, on_event),
            num_workers=num_workers,
            keep_model=assignment.keep_models,
            pixel_cache=assignment.pixel_cache,
            local_settings=assignment.local_settings,
        )
    except Stopped:
        raise
    except Exception as error:  # a failing run must not end the study
        reason = str(error) if isinstance(error, TwinbudError) else f"{type(error).__name__}: {error}"
        reason = " ".join(f"{assignment.machine}: {reason}".split() if assignment.machine else reason.split())
        assignment.store.record_failure(run.run_id, reason, traceback.format_exc())
        on_event(RunFailed(run.run_id, reason))
    else:
        on_event(RunFinished(run.run_id, text))


class _EventProgress:
    """Turns the progress of one run into events."""

    def __init__(self, run_id: str, on_event: OnEvent) -> None:
        self.run_id, self.on_event = run_id, on_event
        self.num_steps = 0
        """Steps of the phases that have ended."""

    def note(self, text: str) -> None:
        """Ignore the line: with several runs at a time it would be unclear which one it is about."""
        del text

    @contextmanager
    def bar(self, label: str, total: int, *, kind: BarKind = "items") -> Iterator[Advance]:
        """Report each step; of a bar without steps only the label."""

        def advance(done: int, text: str = "", /) -> None:
            if kind == "steps":
                self.on_event(StepsTaken(self.run_id, self.num_steps + done, text))

        if kind == "items":
            self.on_event(StepsTaken(self.run_id, self.num_steps, label))
        yield advance
        if kind == "steps":
            self.num_steps += total
