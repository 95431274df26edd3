"""The Slurm executor: its job arrays, and studies through submitit's local executor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.command import refusal, twinbud
from helpers.studies import comparable, save_study
from twinbud.core.errors import TwinbudError
from twinbud.study import execute
from twinbud.study.executors import slurm
from twinbud.study.executors.base import (
    Assignment,
    Event,
    RunFailed,
    RunFinished,
    RunInterrupted,
    RunStarted,
    StepsTaken,
)
from twinbud.study.executors.event_log import EventLog, EventReader
from twinbud.study.executors.in_process import InProcessExecutor
from twinbud.study.executors.slurm import SlurmExecutor
from twinbud.study.run import StudyRequest, execute_study, plan_study
from twinbud.study.store import RunStore

pytest.importorskip("submitit", reason="submitit is not installed: pip install 'twinbud[slurm]'")


@pytest.fixture(scope="module")
def recipe_and_images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe of two short runs, and its images."""
    return save_study(tmp_path_factory.mktemp("recipe_and_images"), epochs=1)


@pytest.fixture
def request_(recipe_and_images: tuple[Path, Path], tmp_path: Path) -> StudyRequest:
    recipe, images = recipe_and_images
    return StudyRequest(recipe=recipe, runs=tmp_path / "runs", data=[f"shades={images}"], only=["sampling=0"])


def records(runs: Path) -> dict[str, Any]:
    store = RunStore(runs)
    return {run_id: comparable(store.read(run_id)) for run_id in store.done_ids()}


def test_a_study_in_jobs_gives_the_records_and_events_of_this_machine(request_: StudyRequest, tmp_path: Path) -> None:
    here = replace(request_, runs=tmp_path / "here")
    execute_study(here, plan_study(here, executor=InProcessExecutor()))
    events: list[Event] = []
    executor = SlurmExecutor(threads=1, num_workers=1, cluster="local")
    study = plan_study(request_, executor=executor)
    study.store.create()
    assignment = Assignment(store=study.store, runs=study.missing, earlier_failures={}, threads=1)
    executor.run(assignment, events.append)
    assert records(request_.runs) == records(here.runs)
    for kind in (RunStarted, RunFinished):
        found = [event.run_id for event in events if isinstance(event, kind)]
        assert found == [run.run_id for run in study.runs], "each once, in order"


class FakeJobs:
    """Submitted elements that end at once: the first arrays lose them, a later one executes them."""

    def __init__(self, num_lost: int) -> None:
        self.num_lost, self.num_arrays = num_lost, 0

    def submit(self, assignment: Assignment, folder: Path, count: int) -> list[Any]:
        slurm.write_runs(assignment, folder)
        self.num_arrays += 1
        if self.num_arrays <= self.num_lost:
            EventLog(folder, "0")(RunStarted(assignment.runs[0].run_id))
        else:
            slurm.ArrayElement(assignment, folder, 0)()

        class Ended:
            state = "NODE_FAIL"

            def done(self) -> bool:
                return True

            def stderr(self) -> str:
                return "slurmstepd: error: node-3 failed\n"

        return [Ended()] * count


@pytest.mark.parametrize("num_lost", [1, 3])
def test_jobs_that_end_before_their_runs_are_submitted_again_and_not_for_ever(
    num_lost: int, request_: StudyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, events = FakeJobs(num_lost), list[Event]()
    executor = SlurmExecutor(threads=1, cluster="local")
    monkeypatch.setattr(executor, "submit", jobs.submit)
    study = plan_study(request_, executor=executor)
    study.store.create()
    assignment = Assignment(store=study.store, runs=study.missing, earlier_failures={}, threads=1)
    if num_lost == 3:
        expected = r"3 job arrays ended without a result \(the last: NODE_FAIL, slurmstepd: error: node-3 failed\)"
        with pytest.raises(TwinbudError, match=expected):
            executor.run(assignment, events.append)
        assert not records(request_.runs)
    else:
        executor.run(assignment, events.append)
        assert len(records(request_.runs)) == 2
        first = study.runs[0].run_id
        assert [event for event in events if isinstance(event, RunInterrupted)] == [
            RunInterrupted(first, "its job ended")
        ]


def test_a_job_that_slurm_does_not_queue_again_ends_without_failing_its_run(
    request_: StudyRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of its time, submitit's handler calls scontrol, which clusters without requeues refuse."""

    def refuse(number: int, frame: object) -> None:
        del number, frame
        raise subprocess.CalledProcessError(1, ["scontrol", "requeue", "12"])

    def run_out_of_time(*arguments: object, **options: object) -> str:
        del arguments, options
        os.kill(os.getpid(), signal.SIGUSR2)
        return "accuracy 1.000"

    monkeypatch.setattr(execute, "execute_run", run_out_of_time)
    study = plan_study(request_, executor=SlurmExecutor(threads=1, cluster="local"))
    study.store.create()
    assignment = Assignment(store=study.store, runs=study.missing, earlier_failures={}, threads=1)
    slurm.write_runs(assignment, tmp_path / "job")
    before = signal.signal(signal.SIGUSR2, refuse)
    try:
        with pytest.raises(SystemExit, match=r"the job is not queued again .*scontrol"):
            slurm.ArrayElement(assignment, tmp_path / "job", 0)()
        assert signal.getsignal(signal.SIGUSR2) is refuse
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert not study.store.failed_ids()


def test_a_folder_of_jobs_that_cannot_be_made_is_told_in_one_line(request_: StudyRequest) -> None:
    executor = SlurmExecutor(threads=1, num_workers=1, cluster="local")
    study = plan_study(request_, executor=executor)
    study.store.create()
    (study.store.path / slurm.JOBS).touch()
    with pytest.raises(TwinbudError, match=r"jobs/[0-9a-f]+: a part of the path is a file, not a folder"):
        execute_study(request_, study)


def test_a_run_that_has_failed_is_not_reported_as_interrupted(
    request_: StudyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FailsFirst(FakeJobs):
        def submit(self, assignment: Assignment, folder: Path, count: int) -> list[Any]:
            jobs = super().submit(assignment, folder, count)
            if self.num_arrays == 1:
                first = assignment.runs[0].run_id
                assignment.store.record_failure(first, "no reason")
                EventLog(folder, "0")(RunFailed(first, "no reason"))
            return jobs

    jobs, events = FailsFirst(1), list[Event]()
    executor = SlurmExecutor(threads=1, cluster="local")
    monkeypatch.setattr(executor, "submit", jobs.submit)
    study = plan_study(request_, executor=executor)
    study.store.create()
    executor.run(Assignment(store=study.store, runs=study.missing, earlier_failures={}, threads=1), events.append)
    assert [event for event in events if isinstance(event, RunInterrupted)] == []


def test_the_script_of_the_array_requests_what_the_options_say(
    request_: StudyRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, line in (("srun", "exit 0"), ("sbatch", 'cp "$1" "$SCRIPT"; echo Submitted batch job 12')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SCRIPT", str(tmp_path / "script.sh"))
    options = [
        "partition=gpu",
        "time=60",
        "reservation=night",
        "exclusive=true",
        "spread-job=true",
        "signal-delay-s=30",
    ]
    options += [
        "signal-delay-s=30",
        "setup=module load cuda",
        'setup=export NOTE="a b"',
        "srun_args=--mpi=none",
        "stderr_to_stdout=false",
    ]
    executor = SlurmExecutor(threads=2, num_gpus=1, num_workers=3, options=options)
    study = plan_study(request_, executor=executor)
    assignment = Assignment(store=study.store, runs=study.missing, earlier_failures={}, threads=2)
    jobs = executor.submit(assignment, tmp_path / "jobs", 3)
    assert [job.job_id for job in jobs] == ["12_0", "12_1", "12_2"]
    pickles = [path.read_bytes() for path in (tmp_path / "jobs").glob("*_submitted.pkl")]
    run_id = study.runs[0].run_id.encode()
    assert [run_id in pickled for pickled in pickles] == [False] * 3, "the runs are in one file, however many elements"
    lines = set((tmp_path / "script.sh").read_text().splitlines())
    wanted = ("array=0-2%3", "cpus-per-task=2", "gpus-per-node=1", "job-name=twinbud", "partition=gpu", "time=60")
    wanted += ("reservation=night", "exclusive", "requeue", "spread-job", "signal=USR2@30")
    assert {f"#SBATCH --{option}" for option in wanted} <= lines
    others = SlurmExecutor(threads=1, options=["no-requeue=true"]).parameters["additional_parameters"]
    assert others == {"no_requeue": True}
    assert {"module load cuda", 'export NOTE="a b"'} <= lines
    (command,) = (line for line in lines if line.startswith("srun "))
    assert " --mpi=none " in command
    assert " --error " in command


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--slurm", "time"), "--slurm: 'time' is not KEY=VALUE. Give a value: --slurm time=60."),
        (("--slurm", "time=2:00"), "--slurm time: '2:00' is not a number of minutes. Give --slurm time=60."),
        (("--slurm", "signal_delay_s=soon"), "--slurm signal_delay_s: 'soon' is not a number of seconds."),
        (
            ("--slurm", "time=60", "--slurm", "time=90"),
            "--slurm time: two values are given, '60' and '90'. Give one of them.",
        ),
        (
            ("--slurm", "spread-job=true", "--slurm", "spread_job=no"),
            "--slurm spread_job: two values are given, 'true' and 'no'. Give one of them.",
        ),
        (("--slurm", "nodes=2"), "--slurm: 'nodes' is set by twinbud."),
        (("--slurm", "map_count=2"), "--slurm: 'map_count' is set by twinbud."),
        (("--slurm", "array=0-9"), "--slurm: 'array' is set by twinbud."),
        (("--gpus", "0.5"), "--gpus: '0.5' is not a whole number of at least 0, and Slurm gives whole GPUs."),
        (
            ("--gpus", "-1"),
            "--gpus: '-1' is not a whole number of at least 0, and Slurm gives whole GPUs. Give --gpus 0",
        ),
        (("--gpus", "inf"), "--gpus: 'inf' is not a number, or none."),
        (("--gpus", "nan"), "--gpus: 'nan' is not a number, or none."),
        (("--workers", "0"), "--workers: 0 is not a number of jobs."),
        (("--address", "a:1"), "--address: 'a:1' has no effect with --executor slurm."),
        ((), "--executor slurm: Slurm is not installed on this machine. Run the command on a login node"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_option_is_refused_in_one_line(
    options: tuple[str, ...],
    expected: str,
    recipe_and_images: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    recipe, images = recipe_and_images
    words = ("--data", f"shades={images}", "--runs", tmp_path / "runs", "--executor", "slurm", *options)
    assert expected in refusal(twinbud("study", recipe, *words))


def test_without_submitit_the_error_names_the_extra(
    recipe_and_images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    recipe, images = recipe_and_images
    words = ("--data", f"shades={images}", "--runs", tmp_path / "runs", "--executor", "slurm")
    expected = 'the package submitit is not installed. Run: pip install "twinbud[slurm]"; or use --executor local.'
    assert refusal(twinbud("study", recipe, *words)) == f"--executor slurm: {expected}"


def test_a_line_that_a_killed_job_left_unfinished_is_skipped(tmp_path: Path) -> None:
    """The element that Slurm queues again appends to the same file."""
    log, read_events = EventLog(tmp_path, "1"), EventReader(tmp_path)
    log.path.write_text('{"kind": "StepsTaken", "run_i')
    assert list(read_events()) == []
    for run_id in ("a", "b"):
        log(RunStarted(run_id))
    assert list(read_events()) == [RunStarted("b")], "the first one is part of the broken line"


def test_events_are_read_once_and_only_whole(tmp_path: Path) -> None:
    log, read_events = EventLog(tmp_path, "1"), EventReader(tmp_path)
    log(RunStarted("a"))
    log(StepsTaken("a", 1, "epoch 1/4 · loss 0.5"))
    log(StepsTaken("a", 2))
    with log.path.open("a") as file:
        file.write(json.dumps({"kind": "RunFinished", "run_id": "a"})[:-4])
    assert list(read_events()) == [RunStarted("a"), StepsTaken("a", 1, "epoch 1/4 · loss 0.5")], "not every step"
    with log.path.open("a") as file:
        file.write('"a", "text": "accuracy 1.000"}\n')
    EventLog(tmp_path, "2")(RunStarted("b"))
    assert set(read_events()) == {RunFinished("a", "accuracy 1.000"), RunStarted("b")}
    assert list(read_events()) == []
