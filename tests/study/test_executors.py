"""The executor protocol: what the study sees of an executor, and the events it receives."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.processes import FORK_SERVER
from helpers.studies import comparable, save_study
from twinbud.core.errors import Stopped, TwinbudError
from twinbud.study.api import study
from twinbud.study.executors import local
from twinbud.study.executors.base import (
    Assignment,
    Event,
    Executor,
    OnEvent,
    RunFailed,
    RunFinished,
    RunInterrupted,
    RunStarted,
    StepsTaken,
    Waiting,
)
from twinbud.study.executors.in_process import InProcessExecutor
from twinbud.study.executors.local import LocalExecutor, assign_cores
from twinbud.study.executors.run_loop import execute_pending_runs
from twinbud.study.run import Study, StudyRequest, execute_study, plan_study, require_success
from twinbud.study.status import StatusTracker, StudyStatus
from twinbud.study.store import RunStore


@pytest.fixture(scope="module")
def recipe_and_images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe of four runs, and its images."""
    return save_study(tmp_path_factory.mktemp("recipe_and_images"), epochs=4)


@pytest.fixture
def request_(recipe_and_images: tuple[Path, Path], tmp_path: Path) -> StudyRequest:
    recipe, images = recipe_and_images
    return StudyRequest(recipe=recipe, runs=tmp_path / "runs", data=[f"shades={images}"])


class FakeExecutor:
    """Writes a synthetic record for each run without training anything."""

    num_workers = 3

    def __init__(self, on_run: Callable[[Assignment, str, OnEvent], None]) -> None:
        self.on_run = on_run

    def run(self, assignment: Assignment, on_event: OnEvent) -> None:
        for run in assignment.runs:
            on_event(RunStarted(run.run_id))
            on_event(StepsTaken(run.run_id, 1, "epoch 1/4"))
            self.on_run(assignment, run.run_id, on_event)


def finish(assignment: Assignment, run_id: str, on_event: OnEvent) -> None:
    facts = next(run.facts for run in assignment.runs if run.run_id == run_id)
    assignment.store.write(run_id, {"facts": dict(facts)})
    on_event(RunFinished(run_id, "accuracy 1.000"))


def fail(assignment: Assignment, run_id: str, on_event: OnEvent) -> None:
    assignment.store.record_failure(run_id, "the loss is nan")
    on_event(RunFailed(run_id, "the loss is nan"))


def execute(request: StudyRequest, executor: Executor) -> tuple[Study, list[StudyStatus]]:
    statuses: list[StudyStatus] = []
    study = plan_study(request, executor=executor)
    done = execute_study(request, study, on_status=lambda status: statuses.append(replace(status)))
    return done, statuses


def test_a_study_needs_nothing_of_an_executor_but_the_protocol(request_: StudyRequest) -> None:
    study, statuses = execute(request_, FakeExecutor(finish))
    assert len(study.done) == 4
    assert study.num_workers == 1, "no run is missing"
    assert [status.message for status in statuses if status.message] == [
        f"{run.label}: accuracy 1.000" for run in study.runs
    ]
    assert (statuses[-1].num_done, statuses[-1].num_runs) == (4, 4)
    require_success(study)


def test_any_executor_can_be_given_from_python(request_: StudyRequest) -> None:
    settings = {"data": {"shades": request_.data[0].partition("=")[2]}, "runs": request_.runs, "show_progress": False}
    done = study(request_.recipe, executor=FakeExecutor(finish), **settings)
    assert isinstance(done.executor, FakeExecutor)
    assert not done.missing


def test_failed_runs_are_in_the_result_and_in_the_status(request_: StudyRequest) -> None:
    study, statuses = execute(request_, FakeExecutor(fail))
    assert [failure.reason for failure in study.failures.values()] == ["the loss is nan"] * 4
    assert (statuses[-1].num_done, statuses[-1].num_failed) == (0, 4)
    with pytest.raises(TwinbudError, match="4 of 4 runs failed; first: the loss is nan"):
        require_success(study)


def test_a_stopped_executor_reports_how_many_runs_are_done(request_: StudyRequest) -> None:
    def stop(assignment: Assignment, run_id: str, on_event: OnEvent) -> None:
        if run_id != assignment.runs[0].run_id:
            raise Stopped("by the executor")
        finish(assignment, run_id, on_event)

    study = plan_study(request_, executor=FakeExecutor(stop))
    with pytest.raises(Stopped, match=r"^stopped with 1 of 4 runs done; the same command resumes the study$"):
        execute_study(request_, study)
    assert len(plan_study(request_).done) == 1


def test_runs_of_other_processes_are_counted(request_: StudyRequest) -> None:
    study = plan_study(request_)
    study.store.create()
    assignment = Assignment(store=study.store, runs=study.missing, earlier_failures={}, threads=1)
    tracker = StatusTracker(assignment, num_done=0)
    first, second, third, _ = study.missing
    study.store.write(first.run_id, {"facts": first.facts})
    study.store.record_failure(second.run_id, "no memory")
    tracker.scan()
    status = tracker.update(RunFailed(second.run_id, "no memory"))
    assert (status.num_done, status.num_failed) == (1, 1), "nothing is counted twice"
    tracker.update(StepsTaken(third.run_id, 1))
    assert tracker.update(Waiting()).seconds_left is None, "the first step of a run may be a resumed one"
    assert (tracker.update(StepsTaken(third.run_id, 2)).seconds_left or 0) > 0
    status = tracker.update(RunInterrupted(third.run_id, "its worker process died (SIGKILL)"))
    assert (status.num_interrupted, status.running) == (1, {})


def executed(request: StudyRequest, executor: Executor) -> tuple[dict[str, Any], list[Event]]:
    """Records and events of a whole study."""
    events: list[Event] = []

    class Recorded:
        num_workers = executor.num_workers

        def run(self, assignment: Assignment, on_event: OnEvent) -> None:
            def record(event: Event) -> None:
                events.append(event)
                on_event(event)

            executor.run(assignment, record)

    study = plan_study(request, executor=Recorded())
    execute_study(request, study)
    return {run_id: comparable(study.store.read(run_id)) for run_id in sorted(study.store.done_ids())}, events


def test_both_executors_give_the_same_records_and_events(request_: StudyRequest, tmp_path: Path) -> None:
    request = replace(request_, only=["sampling=0"])
    inside, events = executed(request, InProcessExecutor())
    other = replace(request, runs=tmp_path / "other")
    outside, other_events = executed(other, LocalExecutor(assign_cores(1, 1)))
    assert len(inside) == 2
    assert inside == outside
    for found in (events, other_events):
        started = [event.run_id for event in found if isinstance(event, RunStarted)]
        assert started == [event.run_id for event in found if isinstance(event, RunFinished)]
        assert len(set(started)) == 2
        steps = [event for event in found if isinstance(event, StepsTaken) and event.run_id == started[0]]
        assert (steps[0].num_steps, steps[0].text) == (0, "decoding")
        assert [event.num_steps for event in steps] == sorted(event.num_steps for event in steps)
        assert steps[-1].num_steps == plan_study(request).runs[0].num_steps


def test_no_worker_process_is_started_with_workers_0(request_: StudyRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "get_context", None)
    request = replace(request_, num_workers=0, only=["sampling=0", "method=selection"])
    assert len(execute_study(request, plan_study(request)).done) == 1


def test_a_runs_folder_that_cannot_be_written_ends_the_study_in_one_line(
    request_: StudyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "get_context", lambda method: FORK_SERVER)
    study = plan_study(replace(request_, only=["sampling=0", "method=selection"]), executor=LocalExecutor(((),)))
    study.store.create()
    (study.store.path / "records").rmdir()
    (study.store.path / "failures").rmdir()
    assignment = Assignment(store=study.store, runs=study.missing, earlier_failures={}, threads=1)
    with pytest.raises(TwinbudError, match=f"^{study.store.path}/failures/"):
        study.executor.run(assignment, lambda event: None)


def test_a_settled_run_is_not_claimed(request_: StudyRequest) -> None:
    """Ten thousand records of an earlier study must not create ten thousand locks."""
    study = plan_study(request_)
    study.store.create()
    for run in study.runs:
        study.store.write(run.run_id, {"facts": run.facts})
    execute_pending_runs(
        Assignment(store=study.store, runs=study.runs, earlier_failures={}, threads=1), lambda event: None
    )
    assert [path.name for path in (study.store.path / "claims").iterdir()] == ["study.lock"]


def test_a_worker_imports_torch_only_after_it_has_its_cores() -> None:
    """The thread pools of torch are sized on import."""
    code = "import sys, twinbud.study.executors.worker; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_no_two_workers_share_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 4, 5, 6}, raising=False)
    assert assign_cores(None, 2) == ((0, 1), (4, 5))
    assert assign_cores(1, 2) == ((0, 1),)
    assert assign_cores(None, 9) == ((),)
    assert assign_cores(None, 2, num_gpus=2) == ((), ())
    assert assign_cores(3, 2, num_gpus=1) == ((), (), ())
    with pytest.raises(TwinbudError, match=r"3 workers need 6 cores \(2 for each run\), but this process may use 5"):
        assign_cores(3, 2)


def test_a_store_is_pickled_by_its_path(tmp_path: Path) -> None:
    """An assignment travels to other processes, and with other executors to other machines."""
    import pickle

    store = RunStore(tmp_path)
    assignment = Assignment(store=store, runs=(), earlier_failures={"a": "now"}, threads=1)
    assert pickle.loads(pickle.dumps(assignment)) == assignment
