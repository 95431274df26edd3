"""A run with a damaged file gives the right result, or one line that says what is wrong; ``make soak`` tries more."""

from __future__ import annotations

from pathlib import Path

from helpers.damaged_folders import judge
from helpers.sound_folders import Place

COMMANDS = ("predict", "calibrate", "compare", "report")


def test_a_damaged_run_gives_the_right_result_or_one_line(tmp_path: Path) -> None:
    place = Place(tmp_path)
    verdicts = [judge(place, seed, COMMANDS) for seed in range(12)]
    assert [f"{verdict.story} -> {verdict.answer}" for verdict in verdicts if not verdict.is_sound] == []
    assert {verdict.answer for verdict in verdicts} == {"right", "refused"}
