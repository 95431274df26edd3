"""The Ray executor without a cluster: what it requests, copies, retries and refuses."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from helpers.builders import save_vit_teacher
from helpers.command import refusal, twinbud
from helpers.fake_ray import (
    FakeRay,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from helpers.studies import comparable, save_recipe, save_study
from twinbud.core.errors import Stopped, TwinbudError
from twinbud.study.executors import ray as ray_executor
from twinbud.study.executors import ray_cluster, ray_task
from twinbud.study.executors.base import Event, RunFailed, RunFinished, RunInterrupted
from twinbud.study.executors.in_process import InProcessExecutor
from twinbud.study.executors.ray import RayExecutor
from twinbud.study.executors.ray_cluster import RunResources
from twinbud.study.executors.ray_task import RunTask
from twinbud.study.run import Study, StudyRequest, execute_study, plan_study
from twinbud.study.store import RunStore

Execute = Callable[[Any, Any], Any]


@pytest.fixture(scope="module")
def recipe_and_images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe of two short runs, and its images."""
    return save_study(tmp_path_factory.mktemp("recipe_and_images"), epochs=1)


@pytest.fixture
def request_(recipe_and_images: tuple[Path, Path], tmp_path: Path) -> StudyRequest:
    recipe, images = recipe_and_images
    runs = tmp_path / "runs"
    return StudyRequest(recipe=recipe, runs=runs, data=[f"shades={images}"], only=["sampling=0"])


@pytest.fixture(autouse=True)
def one_run_a_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ray_task, "_node_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(ray_executor, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(ray_executor, "_CLAIMED_SECONDS", 0.001)
    monkeypatch.setattr(ray_executor, "_SAVE_SECONDS", 0.01)
    monkeypatch.setenv("TWINBUD_CACHE", str(tmp_path / "cache"))


def executor_on(monkeypatch: pytest.MonkeyPatch, fake: FakeRay, **arguments: Any) -> RayExecutor:
    monkeypatch.setattr(ray_cluster, "connect", lambda address: fake)
    monkeypatch.setitem(sys.modules, "ray", fake)
    return RayExecutor(**{"threads": 1, **arguments})


def executed(request: StudyRequest, executor: Any) -> tuple[Study, list[Event]]:
    """The study after its execution, and the events of the executor."""
    events: list[Event] = []

    class Recorded:
        num_workers = 1

        def run(self, assignment: Any, on_event: Any) -> None:
            def record(event: Event) -> None:
                events.append(event)
                on_event(event)

            executor.run(assignment, record)

    study = plan_study(request, executor=Recorded())
    return execute_study(request, study), events


def on_other_machine(task: RunTask, inbox: Any, *, folder: str = "/hidden") -> Any:
    """Execute a task on a machine that has no file at a path of the driver."""
    hidden = {name: Path(folder) / path.relative_to("/") for name, path in task.inputs.items()}
    return ray_task.execute_task(replace(task, inputs=hidden, probe="another"), inbox)


def records(request: StudyRequest) -> dict[str, dict[str, Any]]:
    store = RunStore(request.runs)
    return {run_id: comparable(store.read(run_id)) for run_id in store.done_ids()}


def test_a_run_gets_cores_and_a_share_of_a_gpu() -> None:
    assert RunResources(2).num_fitting({"CPU": 9, "GPU": 1}) == 4
    assert RunResources(1, 0.25).num_fitting({"CPU": 9, "GPU": 2}) == 8
    assert RunResources(1, 0.3).num_fitting({"CPU": 9, "GPU": 2}) == 6, "a run does not use parts of two GPUs"
    assert RunResources(4, 2).num_fitting({"CPU": 9, "GPU": 5}) == 2
    assert RunResources(1, 1).num_fitting({"CPU": 9}) == 0


def test_a_cluster_without_the_gpu_says_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay([{"CPU": 4.0}, {"CPU": 4.0}, {"CPU": 8.0, "GPU": 0.0}])
    expected = (
        r"--executor ray: a run needs 2 CPUs and 1 GPU, which no node of the cluster has "
        r"\(nodes: 2 with 4 CPU and 0 GPU; 1 with 8 CPU and 0 GPU\)\. Add such a node, or lower --gpus"
    )
    with pytest.raises(TwinbudError, match=expected):
        executor_on(monkeypatch, fake, threads=2, device="cuda")
    assert executor_on(monkeypatch, fake, threads=2).num_workers == 8
    assert executor_on(monkeypatch, fake, threads=2, max_runs=3).num_workers == 3
    assert executor_on(monkeypatch, FakeRay([{"CPU": 4.0, "GPU": 2.0}])).resources.num_gpus == 1
    for wrong in (1.5, -1, float("inf"), float("nan")):
        with pytest.raises(TwinbudError, match=f"--gpus: {wrong:g} is not a number of GPUs"):
            executor_on(monkeypatch, fake, num_gpus=wrong)
    with pytest.raises(TwinbudError, match="need a GPU, not 0"):
        executor_on(monkeypatch, fake, num_gpus=0.0, device="cuda")


def test_workers_that_share_no_files_get_copies_and_give_the_records_of_this_machine(
    request_: StudyRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = replace(request_, runs=tmp_path / "here")
    executed(here, InProcessExecutor())
    fake = FakeRay([{"CPU": 1.0}], on_other_machine)
    study, events = executed(request_, executor_on(monkeypatch, fake))
    assert not study.missing
    assert records(request_) == records(here)
    assert [event.run_id for event in events if isinstance(event, RunFinished)] == [run.run_id for run in study.runs]
    for run in study.runs:
        folders = [store / "work" / run.run_id for store in (request_.runs, here.runs)]
        names = [{path.name.partition("tfevents")[0] for path in folder.iterdir()} for folder in folders]
        assert names[0] == names[1], "the run folder comes home whole"
    cluster = tmp_path / "cache" / "cluster"
    assert len(list(cluster.glob("inputs/*/dark"))) == 1, "unpacked once"
    assert not list(cluster.glob("studies/*/work/*"))
    assert [options["num_cpus"] for options in fake.options] == [1] * len(fake.options)


def test_a_full_disk_of_the_driver_is_told_in_one_line(request_: StudyRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack(*arguments: Any) -> None:
        del arguments
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    executor = executor_on(monkeypatch, FakeRay([{"CPU": 1.0}], on_other_machine))
    monkeypatch.setattr(ray_executor, "unpack", unpack)
    with pytest.raises(TwinbudError, match=r"the disk is full\. Free some space or choose another --runs"):
        executed(request_, executor)
    assert not records(request_)


def test_a_damaged_record_on_a_node_is_set_aside_and_its_run_repeated(
    request_: StudyRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As after a power cut between a record and its way home."""

    def execute(task: RunTask, inbox: Any) -> Any:
        outcome = on_other_machine(task, inbox)
        if isinstance(outcome, ray_task.Returned) and not damaged:
            (store,) = (tmp_path / "cache" / "cluster" / "studies").iterdir()
            damaged.append(store / "records" / f"{task.run.run_id}.json")
            damaged[0].write_text("{")
            raise NodeDiedError
        return outcome

    damaged = list[Path]()
    study, _ = executed(request_, executor_on(monkeypatch, FakeRay([{"CPU": 1.0}], execute)))
    assert not study.missing
    assert not damaged[0].exists()


def test_workers_that_see_the_runs_folder_write_there(
    request_: StudyRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study, _ = executed(request_, executor_on(monkeypatch, FakeRay([{"CPU": 1.0}], ray_task.execute_task)))
    assert not study.missing
    assert not (tmp_path / "cache" / "cluster").exists()
    assert not list(request_.runs.glob("claims/driver-*"))


def changed(path: Path) -> None:
    Image.fromarray(np.full((40, 40), 7, np.uint8)).save(path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: changed(folder / "dark" / "000.png"), "dark/000.png has other pixels. Give all nodes"),
        (lambda folder: (folder / "dark" / "000.png").unlink(), "dark/000.png is missing. Give all nodes"),
        (lambda folder: changed(folder / "dark" / "999.png"), "dark/999.png is not part of the study. Give all"),
    ],
    ids=["changed", "missing", "additional"],
)
def test_a_worker_with_other_images_is_refused_by_the_name_of_a_file(
    change: Callable[[Path], None],
    expected: str,
    request_: StudyRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    planned, there = Path(request_.data[0].partition("=")[2]), tmp_path / "there"
    shutil.copytree(planned, there)
    change(there)

    def execute(task: RunTask, inbox: Any) -> Any:
        return ray_task.execute_task(replace(task, inputs={**task.inputs, "data": there}), inbox)

    with pytest.raises(TwinbudError) as error:
        executed(request_, executor_on(monkeypatch, FakeRay([{"CPU": 1.0}], execute)))
    assert str(error.value).startswith("node ")
    assert f"{there}: the images differ from those of the study: {expected}" in str(error.value)
    assert not records(request_)
    assert not list(request_.runs.glob("failures/*"))


def test_a_worker_with_another_teacher_is_refused(
    request_: StudyRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = save_vit_teacher(tmp_path / "other", seed=5).removeprefix("local-dir:")

    def execute(task: RunTask, inbox: Any) -> Any:
        return ray_task.execute_task(replace(task, inputs={**task.inputs, "teacher": Path(other)}), inbox)

    with pytest.raises(TwinbudError, match=f"local-dir:{other}: the teacher differs from that of the study"):
        executed(request_, executor_on(monkeypatch, FakeRay([{"CPU": 1.0}], execute)))


def test_a_worker_with_another_student_is_refused(
    request_: StudyRequest, recipe_and_images: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = yaml.safe_load(recipe_and_images[0].read_text())
    content["methods"] = {"own": {"method": "finetune", "student": save_vit_teacher(tmp_path / "own", seed=5)}}
    recipe = save_recipe(tmp_path / "small.yaml", content)
    other = save_vit_teacher(tmp_path / "other", seed=6).removeprefix("local-dir:")

    def execute(task: RunTask, inbox: Any) -> Any:
        return ray_task.execute_task(replace(task, inputs={**task.inputs, "student": Path(other)}), inbox)

    request = replace(request_, recipe=recipe, only=["sampling=0", "method=own"])
    with pytest.raises(TwinbudError, match=f"local-dir:{other}: the student differs from that of the study"):
        executed(request, executor_on(monkeypatch, FakeRay([{"CPU": 1.0}], execute)))


def test_a_worker_with_another_twinbud_is_refused(request_: StudyRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(task: RunTask, inbox: Any) -> Any:
        return ray_task.execute_task(replace(task, training_version=99), inbox)

    with pytest.raises(TwinbudError, match="its twinbud has training version"):
        executed(request_, executor_on(monkeypatch, FakeRay([{"CPU": 1.0}], execute)))


def test_a_worker_without_twinbud_is_refused(request_: StudyRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(*arguments: Any) -> Any:
        del arguments
        raise RayTaskError(ModuleNotFoundError("No module named 'twinbud'"))

    expected = r"cannot execute runs \(ModuleNotFoundError: No module named 'twinbud'\)\. Install the same twinbud"
    with pytest.raises(TwinbudError, match=expected):
        executed(request_, executor_on(monkeypatch, FakeRay([{"CPU": 1.0}], execute)))


@pytest.mark.parametrize(
    ("error", "limit", "reason"),
    [
        (OutOfMemoryError(), 3, "its node ran out of memory"),
        (WorkerCrashedError("killed"), 3, r"its worker process died (WorkerCrashedError: killed)"),
        (NodeDiedError(), 10, "its node was lost"),
    ],
)
def test_a_run_that_loses_its_worker_is_retried_and_fails_at_last(
    error: Exception, limit: int, reason: str, request_: StudyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = plan_study(request_).runs[0].run_id

    def execute(task: RunTask, inbox: Any) -> Any:
        if task.run.run_id == lost:
            raise error
        return ray_task.execute_task(task, inbox)

    study, events = executed(request_, executor_on(monkeypatch, FakeRay([{"CPU": 1.0}], execute)))
    assert sum(isinstance(event, RunInterrupted) for event in events) == limit
    assert [event.run_id for event in events if isinstance(event, RunFailed)] == [lost]
    assert reason in study.failures[lost].reason
    assert len(study.done) == len(study.runs) - 1


def test_a_failure_on_a_worker_names_its_machine_and_keeps_the_traceback(
    request_: StudyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **keywords: Any) -> None:
        del arguments, keywords
        raise TwinbudError("the disk is full", where="/cache")

    monkeypatch.setattr("twinbud.study.execute.train", fail)
    monkeypatch.setattr("platform.node", lambda: "node-7")
    for execute in (ray_task.execute_task, on_other_machine):
        study, events = executed(request_, executor_on(monkeypatch, FakeRay([{"CPU": 1.0}], execute)))
        failures = list(study.failures.values())
        assert [failure.reason for failure in failures] == ["node-7: /cache: the disk is full."] * 2
        assert all("the disk is full" in failure.traceback for failure in failures)
        assert sum(isinstance(event, RunFailed) for event in events) == 2


def test_a_run_that_another_driver_executes_is_waited_for(
    request_: StudyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both modes: the worker claims in the shared folder, or the driver claims for it."""
    for execute in (ray_task.execute_task, on_other_machine):
        request = replace(request_, runs=request_.runs.with_name(execute.__name__))
        store, claimed = RunStore(request.runs), plan_study(request).runs[0].run_id
        store.create()
        claim = store.claim(claimed)
        assert claim.__enter__()
        tries: list[int] = []

        def release(event: Event, claim: Any = claim, store: RunStore = store, tries: list[int] = tries) -> None:
            del event
            tries.append(1)
            if len(tries) == 40:
                assert len(store.done_ids()) == 1
                claim.__exit__(None, None, None)

        executor = executor_on(monkeypatch, FakeRay([{"CPU": 1.0}], execute))
        study = plan_study(request, executor=executor)
        executor_run = executor.run
        monkeypatch.setattr(
            executor, "run", lambda assignment, on_event, run=executor_run: run(assignment, release), raising=True
        )
        done = execute_study(request, study)
        assert not done.missing


def test_events_go_on_when_the_process_that_keeps_them_is_lost(
    request_: StudyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, lost = FakeRay([{"CPU": 1.0}], ray_task.execute_task), [True]

    def take(inbox: ray_task.EventInbox) -> list[tuple[int, Event]]:
        if lost:
            lost.clear()
            raise RayError("the actor died")
        events, inbox.events = inbox.events, []
        return events

    monkeypatch.setattr(ray_task.EventInbox, "take", take)
    study, events = executed(request_, executor_on(monkeypatch, fake))
    assert not study.missing
    assert sum(isinstance(event, RunFinished) for event in events) == 2


def test_a_stop_cancels_the_tasks_and_can_be_continued(request_: StudyRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(task: RunTask, inbox: Any) -> Any:
        if not records(request_):
            return ray_task.execute_task(task, inbox)
        os.kill(os.getpid(), signal.SIGTERM)
        return ray_task.Interrupted()

    with pytest.raises(Stopped, match="stopped with 1 of 2 runs done; the same command resumes the study"):
        executed(request_, executor_on(monkeypatch, FakeRay([{"CPU": 1.0}], execute)))
    study, _ = executed(request_, executor_on(monkeypatch, FakeRay([{"CPU": 1.0}], ray_task.execute_task)))
    assert not study.missing


def closed_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--executor", "spark"), "--executor: 'spark' is not one of local, ray, slurm"),
        (("--address", "a:1"), "--address: 'a:1' has no effect with --executor local."),
        (("--gpus", 1), "--gpus: '1' has no effect with --executor local. Leave it out, or give --executor ray"),
        (("--executor", "ray", "--address", "cluster"), "--address: 'cluster' is not HOST:PORT."),
        (("--executor", "ray", "--address", "ray://head:10001"), "from elsewhere, use 'ray job submit'."),
        (
            ("--executor", "ray", "--address", "127.0.0.1:{port}"),
            "the Ray cluster cannot be reached (connection refused)",
        ),
        (("--executor", "ray", "--workers", 0, "--address", "a:1"), "--workers: 0 is not a number of runs"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_wrong_option_is_refused_in_one_line(
    options: tuple[Any, ...], expected: str, recipe_and_images: tuple[Path, Path], tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    recipe, images = recipe_and_images
    given = [str(word).format(port=closed_port()) for word in options]
    answer = twinbud("study", recipe, "--data", f"shades={images}", "--runs", tmp_path / "runs", *given)
    assert expected in refusal(answer)
    assert not (tmp_path / "runs").exists()


def test_without_ray_the_error_names_the_extra(
    recipe_and_images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    recipe, images = recipe_and_images
    words = ("--data", f"shades={images}", "--runs", tmp_path / "runs", "--executor", "ray")
    expected = (
        '--executor ray: the package ray is not installed. Run: pip install "twinbud[cluster]"; '
        "or use --executor local."
    )
    assert refusal(twinbud("study", recipe, *words)) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            ConnectionError("no instance"),
            "no Ray cluster is running on this machine. Start Ray with 'ray start --head'",
        ),
        (
            RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.11\n"),
            "the cluster runs other versions (Version mismatch: The cluster was started with: Ray: 2.9.0 Python: 3.11)",
        ),
        (RuntimeError("cannot find a node"), "the cluster cannot be joined (RuntimeError: cannot find a node)"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_told_in_one_line(
    error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**arguments: Any) -> None:
        del arguments
        raise error

    fake = SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(TwinbudError) as found:
        ray_cluster.connect(None)
    assert f"--address auto: {expected}" in str(found.value)


def test_a_process_that_is_connected_to_another_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runs would be executed on the cluster of an earlier study, which may see other files."""
    context = SimpleNamespace(gcs_address="10.0.0.1:6379")
    fake = SimpleNamespace(is_initialized=lambda: True, get_runtime_context=lambda: context)
    monkeypatch.setitem(sys.modules, "ray", fake)
    for address in (None, "10.0.0.1:6379"):
        assert ray_cluster.connect(address) is fake
    for other in ("10.0.0.1:6380", "10.0.0.2:6379"):
        with pytest.raises(TwinbudError, match=r"connected to another Ray cluster, at 10\.0\.0\.1:6379"):
            ray_cluster.connect(other)
