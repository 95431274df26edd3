"""Saves checkpoints at intervals, and stops a run between two steps when the system requests it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from twinbud.core.errors import Stopped
from twinbud.core.signals import stop_on_signal
from twinbud.training.checkpoint import Checkpoint, CheckpointFolder, EpochRecord


class CheckpointManager:
    """The checkpoints of one training phase.

    Args:
        folder: Where checkpoints are saved; None saves nothing.
        checkpoint: The checkpoint to continue from, or None to start from the beginning.
        every_seconds: Least time between two checkpoints; they are saved at the ends of epochs.
        save_last: Whether to save after the last epoch too, for a phase that is followed by another.
        phases: The managers of earlier phases, by name; a request to stop reaches them too.
    """

    def __init__(
        self,
        folder: CheckpointFolder | None = None,
        checkpoint: Checkpoint | None = None,
        every_seconds: float = 60.0,
        *,
        save_last: bool = False,
        phases: Mapping[str, CheckpointManager] | None = None,
    ) -> None:
        self.folder, self.checkpoint, self.every_seconds = folder, checkpoint, every_seconds
        self.save_last, self.phases = save_last, dict(phases or {})
        self.stop_requested = False
        self.saved_at = time.monotonic()

    @property
    def records(self) -> tuple[EpochRecord, ...]:
        """The epochs that were finished before the checkpoint to continue from."""
        return self.checkpoint.position.records if self.checkpoint else ()

    def save_if_due(self, checkpoint: Callable[[], Checkpoint], *, is_last: bool = False) -> None:
        """Save after an epoch if enough time has passed, or if it is the last one and that is to be saved."""
        is_due = time.monotonic() - self.saved_at >= self.every_seconds or (is_last and self.save_last)
        if self.folder is not None and is_due:
            self.save(checkpoint())

    def save(self, checkpoint: Checkpoint) -> None:
        """Save now, if there is a folder."""
        if self.folder is not None:
            self.folder.save(checkpoint)
            self.saved_at = time.monotonic()

    def save_and_stop(self, checkpoint: Callable[[], Checkpoint], num_steps: int) -> None:
        """Save the checkpoint and leave the run.

        Raises:
            Stopped: Always.
        """
        if self.folder is None:
            raise Stopped(f"stopped after step {num_steps}; nothing was saved")
        self.folder.save(checkpoint())
        raise Stopped(f"stopped after step {num_steps}; continue with the same command and --resume")

    def phase(self, name: str) -> CheckpointManager:
        """Return the manager of an earlier phase; one that saves nothing if there is no such phase."""
        return self.phases.get(name) or CheckpointManager()

    def request_stop(self) -> None:
        """Stop after the current step, in whichever phase it is."""
        self.stop_requested = True
        for phase in self.phases.values():
            phase.request_stop()

    def stop_on_signal(self, *, repeatedly: bool = False) -> AbstractContextManager[None]:
        """Return a context in which a signal to stop requests a stop after the current step.

        Args:
            repeatedly: See ``core.signals.stop_on_signal``.
        """
        return stop_on_signal(self.request_stop, repeatedly=repeatedly)
