"""How long things take, in words."""

from __future__ import annotations

from twinbud.core.progress import duration


def test_durations_read_like_a_clock() -> None:
    assert [duration(s) for s in (None, 3.21, 48, 200, 7500)] == ["–", "3.2 s", "48 s", "3 min 20 s", "2 h 05 min"]
