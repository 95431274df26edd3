"""The estimated time of a run, from the records of others."""

from __future__ import annotations

from typing import Any

import pytest

from twinbud.config.schema import RunConfig
from twinbud.core.progress import SilentProgress
from twinbud.models.families.vit import ViTFamily
from twinbud.study import estimate as estimate_module
from twinbud.study.estimate import Estimate
from twinbud.study.grid import PlannedRun, SharedTuning, checked_config
from twinbud.study.run_id import run_facts

SETTINGS: dict[str, Any] = {"teacher": "dinov2-small", "profile": "best", "fraction": 0.05, "threads": 1}


def facts_of(images: str = "these", **settings: Any) -> dict[str, Any]:
    config = checked_config({**SETTINGS, **settings, "data": "phantom"})
    return run_facts(config, images=images, teacher="dinov2-small", family=ViTFamily())


def record(train_seconds: float, num_steps: int, **settings: Any) -> dict[str, Any]:
    cost = {"train_seconds": train_seconds, "num_steps": num_steps, "recover_seconds": 30.0}
    return {"facts": facts_of(**settings), "cost": cost}


def planned(num_steps: int, tuning: SharedTuning | None = None, **settings: Any) -> PlannedRun:
    return PlannedRun(
        run_id="",
        facts=facts_of(**settings),
        coordinates={},
        settings={**SETTINGS, **settings, "data": "phantom"},
        num_steps=num_steps,
        num_test=96,
        tuning=tuning,
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


def test_fine_tuning_that_runs_share_is_counted_once() -> None:
    tuning = SharedTuning("this teacher", 150)
    estimate = Estimate([record(130.0, 100)], SilentProgress())
    assert estimate.seconds(planned(200, tuning)) == pytest.approx(30 + 200 + 1)
    assert estimate.seconds(planned(200, tuning)) == pytest.approx(30 + 50 + 1)
    assert estimate.seconds(planned(200, SharedTuning("another", 150))) == pytest.approx(30 + 200 + 1)
    later = Estimate([record(130.0, 100)], SilentProgress(), tuned=["this teacher"])
    assert later.seconds(planned(200, tuning)) == pytest.approx(30 + 50 + 1)


def test_a_step_of_fine_tuning_is_timed_with_the_whole_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[tuple[str, str]] = []

    def measure(config: RunConfig) -> float:
        timed.append((config.model.method, config.model.student))
        return 7.0 if config.model.student == "same" else 2.0

    monkeypatch.setattr(estimate_module, "measure_step", measure)
    estimate = Estimate([], SilentProgress())
    assert estimate.seconds(planned(200, SharedTuning("this teacher", 150))) == pytest.approx(150 * 7 + 51 * 2)
    assert estimate.seconds(planned(100, SharedTuning("another", 100))) == pytest.approx(100 * 7 + 2)
    assert estimate.seconds(planned(100, SharedTuning("third", 100), student="quarter", attention="within")) > 0
    assert timed == [("finetune", "same"), ("selection", "half"), ("selection", "quarter")]
