"""The remaining time of a study whose runs share the fine-tuning of a teacher."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from helpers.studies import SETTINGS, recipe_content, save_images_and_teacher, save_recipe
from twinbud.study.executors.base import (
    Assignment,
    Event,
    OnEvent,
    RunFailed,
    RunFinished,
    StepsTaken,
)
from twinbud.study.executors.in_process import InProcessExecutor
from twinbud.study.grid import PlannedRun, SharedTuning
from twinbud.study.run import StudyRequest, execute_study, plan_study
from twinbud.study.status import StatusTracker
from twinbud.study.store import RunStore

TUNING = SharedTuning("the teacher", 300)


def planned(run_id: str, num_steps: int, tuning: SharedTuning | None = TUNING) -> PlannedRun:
    return PlannedRun(
        run_id=run_id, facts={}, coordinates={}, settings={}, num_steps=num_steps, num_test=1, tuning=tuning
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the tracker sees, in seconds."""
    now = [1.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def tracker(runs: list[PlannedRun], folder: Path) -> StatusTracker:
    store = RunStore(folder)
    store.create()
    return StatusTracker(Assignment(store=store, runs=runs, earlier_failures={}, threads=1), num_done=0)


def test_shared_fine_tuning_is_waited_for_once(tmp_path: Path, clock: list[float]) -> None:
    track = tracker([planned("a", 300), planned("b", 300), planned("c", 340), planned("d", 60, None)], tmp_path)
    track.update(StepsTaken("a", 1))
    clock[0] += 99
    assert track.update(StepsTaken("a", 100)).seconds_left == pytest.approx(200 + 40 + 60)
    clock[0] += 200
    track.update(StepsTaken("a", 300))
    assert track.update(RunFinished("a", "")).seconds_left == pytest.approx(40 + 60)
    track.update(StepsTaken("b", 300))
    assert track.update(RunFinished("b", "")).seconds_left == pytest.approx(40 + 60)
    track.update(StepsTaken("c", 300))
    track.update(StepsTaken("c", 301))
    clock[0] += 9
    assert track.update(StepsTaken("c", 310)).seconds_left == pytest.approx(30 + 60)
    assert track.update(RunFailed("c", "no memory")).seconds_left == pytest.approx(60)


def test_fine_tuning_that_failed_is_left_for_the_other_runs(tmp_path: Path, clock: list[float]) -> None:
    track = tracker([planned("a", 300), planned("b", 300)], tmp_path)
    track.update(StepsTaken("a", 1))
    clock[0] += 99
    track.update(StepsTaken("a", 100))
    assert track.update(RunFailed("a", "no memory")).seconds_left == pytest.approx(200)
    track.update(StepsTaken("b", 1))  # which begins it again
    clock[0] += 120
    assert 200 <= (track.update(StepsTaken("b", 120)).seconds_left or 0) < 400
    assert track.update(RunFailed("b", "no memory")).seconds_left == pytest.approx(0)


def test_fine_tuning_of_earlier_studies_is_not_waited_for(tmp_path: Path, clock: list[float]) -> None:
    store = RunStore(tmp_path)
    store.create()
    assignment = Assignment(store=store, runs=[planned("a", 340)], earlier_failures={}, threads=1)
    track = StatusTracker(assignment, num_done=0, tuned={TUNING.tuning_id})
    track.update(StepsTaken("a", 300))
    track.update(StepsTaken("a", 301))
    clock[0] += 9
    assert track.update(StepsTaken("a", 310)).seconds_left == pytest.approx(30, rel=0.2)


def test_runs_of_a_study_that_share_a_teacher_are_planned_so(tmp_path: Path) -> None:
    images, teacher = save_images_and_teacher(tmp_path)
    common = {"mixup": 0.4, "average": 0.99, "classifier_start": "probe"}
    tuned = {"method": "selection", "tune_teacher": True, "tune_epochs": 2, "tune_min_steps": 0}
    tuned |= {"tune_learning_rate": 1e-3, "tune_layer_decay": 1.0}
    methods = {
        "tuned": common | tuned,
        "within": common | tuned | {"attention": "within"},
        "whole": common | {"method": "finetune", "epochs": 2, "min_steps": 0, "learning_rate": 1e-3},
        "selection": {"method": "selection"},
    }
    content = recipe_content(teacher, settings=SETTINGS)
    content |= {"methods": methods}
    content["grid"] |= {"method": [*methods]}
    recipe = save_recipe(tmp_path / "tuned.yaml", content)
    events: list[Event] = []

    class Recorded(InProcessExecutor):
        def run(self, assignment: Assignment, on_event: OnEvent) -> None:
            def record(event: Event) -> None:
                events.append(event)
                on_event(event)

            super().run(assignment, record)

    request = StudyRequest(recipe=recipe, runs=tmp_path / "runs", data=[f"shades={images}"], only=["sampling=0"])
    study = plan_study(request, executor=Recorded())
    first, within, whole, selection = study.runs
    assert first.tuning is not None
    assert first.tuning == within.tuning == whole.tuning
    assert (whole.num_steps, selection.tuning) == (first.tuning.num_steps, None)
    other_sampling = plan_study(StudyRequest(recipe=recipe, runs=tmp_path / "runs", data=[f"shades={images}"]))
    assert len({run.tuning for run in other_sampling.runs if run.tuning}) == 2, "one for each sampling"
    execute_study(request, study)
    assert len(list((tmp_path / "runs" / "teachers").rglob("tuning.json"))) == 1
    for run in study.runs:
        steps: list[Any] = [event for event in events if isinstance(event, StepsTaken) and event.run_id == run.run_id]
        assert steps[-1].num_steps == run.num_steps, "shared steps count as taken"
