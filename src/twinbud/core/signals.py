"""How a process learns that it should stop: the first signal asks it to, the second one ends it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))
"""Requests to stop, as far as the system has them: Ctrl-C, ``kill``, a closed terminal, Ctrl-Break."""


def heeded_signals() -> tuple[signal.Signals, ...]:
    """Return those of ``SIGNALS`` that the process does not ignore.

    A shell starts background jobs with SIGINT ignored, and ``nohup`` starts its command with SIGHUP ignored: such a
    signal is meant for others and stays ignored.
    """
    return tuple(number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None))


@contextmanager
def stop_on_signal(request_stop: Callable[[], None], *, repeatedly: bool = False) -> Iterator[None]:
    """Call ``request_stop`` at the first signal while the context lasts; a second one ends the process at once.

    Args:
        request_stop: Called inside the signal handler, so that it should only set a flag.
        repeatedly: Let later signals end nothing either. After Ctrl-C, which reaches all processes of a terminal,
            ``torchrun`` sends each of its own one more, and ends them by SIGKILL half a minute later.

    Outside the main thread, and for signals that are ignored when the context begins, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in heeded_signals()}

    def handle(number: int, frame: FrameType | None) -> None:
        del number, frame
        request_stop()
        if not repeatedly:
            for each in before:
                signal.signal(each, signal.SIG_DFL)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
