"""Keeps a run safe: saves checkpoints as time goes by, and stops it between two steps when the system asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from twinbud.core.errors import Stopped
from twinbud.core.signals import stop_on_signal
from twinbud.training.checkpoint import Checkpoint, CheckpointFolder, EpochRecord


class CheckpointManager:
    """Where ``fit`` finds a checkpoint to go on from, and leaves others.

    Args:
        folder: Where checkpoints are kept; None keeps nothing.
        found: The checkpoint to go on from, or None.
        every_seconds: How much work a crash may cost at most, epochs aside.
        keeps_last: Whether to save after the last epoch too, for a phase that others follow.
        phases: Of each phase before this one, by name; they stop when this one is asked to.
    """

    def __init__(
        self,
        folder: CheckpointFolder | None = None,
        found: Checkpoint | None = None,
        every_seconds: float = 60.0,
        *,
        keeps_last: bool = False,
        phases: Mapping[str, CheckpointManager] | None = None,
    ) -> None:
        self.folder, self.found, self.every_seconds = folder, found, every_seconds
        self.keeps_last, self.phases = keeps_last, dict(phases or {})
        self.stop_requested = False
        self.saved_at = time.monotonic()

    @property
    def records(self) -> tuple[EpochRecord, ...]:
        """The epochs that the checkpoint found has finished."""
        return self.found.position.records if self.found else ()

    def keep(self, checkpoint: Callable[[], Checkpoint], num_steps: int, *, is_last: bool = False) -> None:
        """After an epoch: save if it is time to, and stop if asked to."""
        if self.stop_requested:
            self.stop(checkpoint, num_steps)
        is_due = time.monotonic() - self.saved_at >= self.every_seconds or (is_last and self.keeps_last)
        if self.folder is not None and is_due:
            self.save(checkpoint())

    def save(self, checkpoint: Checkpoint) -> None:
        """Save now, if anything is kept."""
        if self.folder is not None:
            self.folder.save(checkpoint)
            self.saved_at = time.monotonic()

    def stop(self, checkpoint: Callable[[], Checkpoint], num_steps: int) -> None:
        """Save and leave.

        Raises:
            Stopped: Always.
        """
        if self.folder is None:
            raise Stopped(f"stopped after step {num_steps}; nothing was saved")
        self.folder.save(checkpoint())
        raise Stopped(f"stopped after step {num_steps}; the same command with --resume goes on from there")

    def phase(self, name: str) -> CheckpointManager:
        """The keeper of an earlier phase; one that keeps nothing where there is none."""
        return self.phases.get(name) or CheckpointManager()

    def ask_to_stop(self) -> None:
        """Stop after the step in progress, whichever phase it is of."""
        self.stop_requested = True
        for phase in self.phases.values():
            phase.ask_to_stop()

    def stop_on_signal(self) -> AbstractContextManager[None]:
        """While this lasts, SIGINT and SIGTERM ask for a stop after the step in progress."""
        return stop_on_signal(self.ask_to_stop)
