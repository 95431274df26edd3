"""The estimated time of a run, from the records of others."""

from __future__ import annotations

from typing import Any

import pytest

from twinbud.core.progress import SilentProgress
from twinbud.models.families.vit import ViTFamily
from twinbud.study.estimate import Estimate
from twinbud.study.grid import PlannedRun, checked_config
from twinbud.study.run_id import run_facts

SETTINGS: dict[str, Any] = {"teacher": "dinov2-small", "profile": "best", "fraction": 0.05, "threads": 1}


def facts_of(images: str = "these", **settings: Any) -> dict[str, Any]:
    config = checked_config({**SETTINGS, **settings, "data": "phantom"})
    return run_facts(config, images=images, teacher="dinov2-small", family=ViTFamily())


def record(train_seconds: float, num_steps: int, **settings: Any) -> dict[str, Any]:
    cost = {"train_seconds": train_seconds, "num_steps": num_steps, "recover_seconds": 30.0}
    return {"facts": facts_of(**settings), "cost": cost}


def planned(num_steps: int, **settings: Any) -> PlannedRun:
    return PlannedRun(
        run_id="", facts=facts_of(**settings), coordinates={}, settings={}, num_steps=num_steps, num_test=96
    )


def test_the_time_of_least_squares_is_added_once() -> None:
    estimate = Estimate([record(130.0, 100)], SilentProgress())
    assert estimate.seconds(planned(200)) == pytest.approx(30 + 200 + 1)


def test_the_time_of_least_squares_on_other_images_is_unknown() -> None:
    estimate = Estimate([record(130.0, 100)], SilentProgress())
    others: list[dict[str, Any]] = [{"fraction": 0.1}, {"develop": True}, {"images": "others"}]
    for changes in others:
        assert estimate.seconds(planned(200, **changes)) == pytest.approx(200 + 1)


def test_recovery_steps_count_as_training_steps() -> None:
    estimate = Estimate([record(130.0, 100, recover_epochs=3)], SilentProgress())
    assert estimate.seconds(planned(200, recover_epochs=3)) == pytest.approx(260 + 1.3)
