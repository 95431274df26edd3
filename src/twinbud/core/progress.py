"""Progress reporting: a live bar on a terminal, log lines elsewhere, silence by default in the library."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol

BarKind = Literal["items", "steps"]
"""What a bar counts: optimizer steps, which count towards a run's planned total, or any other items."""


class Advance(Protocol):
    """Moves a bar to a number of completed units, and sets the text beside it."""

    def __call__(self, done: int, text: str = "", /) -> None:
        """Move the bar to ``done`` units."""
        ...


class Progress(Protocol):
    """Receiver of the progress of a long computation."""

    def note(self, text: str) -> None:
        """Report one line."""
        ...

    def bar(self, label: str, total: int, *, kind: BarKind = "items") -> AbstractContextManager[Advance]:
        """Show a bar of ``total`` units while the context is open."""
        ...


class SilentProgress:
    """Reports nothing; the default of the library's functions."""

    def note(self, text: str) -> None:
        """Ignore the line."""
        del text

    @contextmanager
    def bar(self, label: str, total: int, *, kind: BarKind = "items") -> Iterator[Advance]:
        """Show no bar."""
        del label, total, kind
        yield lambda done, text="": None


class TerminalProgress:
    """Shows a live bar on a terminal that can redraw lines, else prints a line every ``interval`` seconds."""

    def __init__(self, interval: float = 10.0) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)
        self.interval = interval

    def note(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, label: str, total: int, *, kind: BarKind = "items") -> Iterator[Advance]:
        """Show a bar; see ``Progress.bar``."""
        del kind
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            with self._live(label, total) as advance:
                yield advance
        else:
            yield self._lines(label, total)

    @contextmanager
    def _live(self, label: str, total: int) -> Iterator[Advance]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<16}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=self.console, speed_estimate_period=60) as progress:
            task = progress.add_task(label, total=total, text="")
            yield lambda done, text="": progress.update(task, completed=done, text=text)

    def _lines(self, label: str, total: int) -> Advance:
        start = last = time.monotonic()

        def advance(done: int, text: str = "", /) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < self.interval and done < total:
                return
            last = now
            left = (now - start) / max(done, 1) * (total - done)
            self.note(f"{label}: {done}/{total}{f' · {text}' if text else ''} · {duration(left)} left")

        return advance


def duration(seconds: float | None) -> str:
    """Format a duration: ``3.2 s``, ``48 s``, ``3 min 05 s`` or ``2 h 10 min``; a dash for None."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
