"""Keeps a run safe: saves checkpoints as time goes by, and stops it between two steps when the system asks."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from twinbud.errors import Stopped
from twinbud.training.checkpoint import Checkpoint, CheckpointFolder, EpochRecord

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Keeper:
    """Where ``fit`` finds a checkpoint to go on from, and leaves others.

    Args:
        folder: Where checkpoints are kept; None keeps nothing.
        found: The checkpoint to go on from, or None.
        every_seconds: How much work a crash may cost at most, epochs aside.
    """

    def __init__(
        self, folder: CheckpointFolder | None = None, found: Checkpoint | None = None, every_seconds: float = 60.0
    ) -> None:
        self.folder, self.found, self.every_seconds = folder, found, every_seconds
        self.stopping = False
        self.saved_at = time.monotonic()

    @property
    def records(self) -> tuple[EpochRecord, ...]:
        """The epochs that the checkpoint found has finished."""
        return self.found.position.records if self.found else ()

    def keep(self, checkpoint: Callable[[], Checkpoint], num_steps: int) -> None:
        """Between two epochs: save if it is time to, and stop if asked to."""
        if self.stopping:
            self.stop(checkpoint, num_steps)
        if self.folder is not None and time.monotonic() - self.saved_at >= self.every_seconds:
            self.folder.save(checkpoint())
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

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While this lasts, SIGINT and SIGTERM ask for a stop after the step in progress; a second one ends at once.

        The handler only sets a flag. Outside the main thread nothing is caught.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}

        def ask(number: int, frame: FrameType | None) -> None:
            del number, frame
            self.stopping = True
            for each in SIGNALS:
                signal.signal(each, signal.SIG_DFL)

        for number in SIGNALS:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
