"""A signal to stop, at a chosen step of a run in this process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def sigterm_at_step(kind: Any, number: int) -> Iterator[None]:
    """Send SIGTERM to this process when the step class ``kind`` takes its step ``number``, from 1."""
    take, taken = kind.__call__, []

    def signalled(self: Any, *batch: Any) -> Any:
        taken.append(1)
        if len(taken) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self, *batch)

    with patch.object(kind, "__call__", signalled):
        yield
