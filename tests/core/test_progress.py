"""Progress as bars or lines, and how long things take, in words."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from twinbud.core.progress import TerminalProgress, duration


def test_durations_read_like_a_clock() -> None:
    assert [duration(s) for s in (None, 3.21, 48, 200, 7500)] == ["–", "3.2 s", "48 s", "3 min 20 s", "2 h 05 min"]


@pytest.mark.parametrize(("terminal", "has_bar"), [("xterm", True), ("dumb", False)])
def test_a_terminal_that_cannot_redraw_lines_gets_plain_ones(
    terminal: str, has_bar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", terminal)
    progress, output = TerminalProgress(interval=0), io.StringIO()
    progress.console = Console(file=output, force_terminal=True, width=80)
    with progress.bar("training", 2) as advance:
        advance(1, "loss 0.5")
    assert ("\x1b[" in output.getvalue()) == has_bar
    assert ("training: 1/2 · loss 0.5 · " in output.getvalue()) != has_bar
