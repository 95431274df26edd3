"""An executor without worker processes, for debugging: ``--workers 0``."""

from __future__ import annotations

from twinbud.study.executors.base import Assignment, OnEvent
from twinbud.study.executors.run_loop import execute_pending_runs


class InProcessExecutor:
    """Executes one run after another in the calling process."""

    num_workers = 1

    def run(self, assignment: Assignment, on_event: OnEvent) -> None:
        """Return when every run has a record or has failed; see ``Executor.run``."""
        execute_pending_runs(assignment, on_event)
