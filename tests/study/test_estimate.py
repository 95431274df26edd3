"""How long a run will take, from the records of others."""

from __future__ import annotations

from typing import Any

import pytest

from twinbud.config.loading import settings_of
from twinbud.core.progress import SilentProgress
from twinbud.study.estimate import Estimate
from twinbud.study.grid import PlannedRun, checked_config

SETTINGS: dict[str, Any] = {"teacher": "dinov2-small", "profile": "best", "fraction": 0.05, "threads": 1}


def record(train_seconds: float, num_steps: int, **settings: Any) -> dict[str, Any]:
    config = checked_config({**SETTINGS, **settings, "data": "phantom"})
    cost = {"train_seconds": train_seconds, "num_steps": num_steps, "recover_seconds": 30.0}
    given = {name: value for name, value in settings_of(config).items() if name != "data"}
    return {"facts": {"images": "these"}, "settings": given, "cost": cost}


def planned(num_steps: int, images: str = "these", **settings: Any) -> PlannedRun:
    given, facts = {**SETTINGS, **settings, "data": "phantom"}, {"images": images}
    return PlannedRun(run_id="", facts=facts, coordinates={}, settings=given, num_steps=num_steps, num_test=96)


def test_least_squares_are_counted_once_and_not_by_the_step() -> None:
    estimate = Estimate([record(130.0, 100)], SilentProgress())
    assert estimate.seconds(planned(200)) == pytest.approx(30 + 200 + 1)


def test_least_squares_on_another_number_of_images_are_not_guessed() -> None:
    estimate = Estimate([record(130.0, 100)], SilentProgress())
    others: list[dict[str, Any]] = [{"fraction": 0.1}, {"develop": True}, {"images": "others"}]
    for changes in others:
        assert estimate.seconds(planned(200, **changes)) == pytest.approx(200 + 1)


def test_steps_of_recovery_count_as_steps() -> None:
    estimate = Estimate([record(130.0, 100, recover_epochs=3)], SilentProgress())
    assert estimate.seconds(planned(200, recover_epochs=3)) == pytest.approx(260 + 1.3)
