"""The Slurm executor: a job array whose elements work on the runs folder, for clusters without Ray."""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from twinbud.core.errors import Stopped, TwinbudError, explained_writes, first_line
from twinbud.core.extras import import_extra
from twinbud.core.files import read_json, write_json
from twinbud.core.signals import stop_on_signal
from twinbud.core.typed_json import from_json, to_json
from twinbud.study.executors.base import (
    Assignment,
    OnEvent,
    RunFailed,
    RunFinished,
    RunInterrupted,
    RunStarted,
    Waiting,
)
from twinbud.study.executors.event_log import EventLog, EventReader
from twinbud.study.executors.run_loop import execute_pending_runs
from twinbud.study.executors.worker import set_thread_variables
from twinbud.study.grid import PlannedRun

WHERE = "--executor slurm"
JOBS = "jobs"
"""Scripts, logs and events of the job arrays, in the runs folder."""
_RUNS = "runs.json"
_MINUTES = 480
_MAX_REQUEUES = 1000
_MAX_TASKS = 64
_POLL_SECONDS = 1.0
_SAVE_SECONDS = 30.0
_MAX_ROUNDS_WITHOUT_RESULT = 3
_OWN = frozenset({
    "additional_parameters", "array", "array_parallelism", "cpus_per_task", "error", "gpus_per_node", "job_name",
    "map_count", "nodes", "ntasks", "ntasks_per_node", "num_gpus", "output",
})  # fmt: skip
"""Parameters that this executor or submitit sets."""
_NUMBERS = {"time": "minutes", "signal_delay_s": "seconds"}
"""Parameters that are whole numbers, and their units."""
_SWITCHES = frozenset({"stderr_to_stdout", "use_srun"})
"""Parameters of submitit that are true or false."""
_LISTS = frozenset({"setup", "srun_args", "teardown"})
"""Parameters that submitit takes as lists of lines or words; each option adds one."""


class ArrayElement:
    """What one element of the array executes; a new one is queued by Slurm when its time is over.

    Args:
        assignment: What to execute; the runs are those of ``write_runs``.
        folder: The folder of the array, with the runs and the logs of events.
        number: Number of the element.
    """

    def __init__(self, assignment: Assignment, folder: Path, number: int) -> None:
        self.assignment, self.folder, self.number = replace(assignment, runs=()), folder, number

    def __call__(self) -> None:
        """Execute runs until all are settled, or Slurm requests a stop."""
        runs = [from_json(PlannedRun, run) for run in read_json(self.folder / _RUNS)]
        assignment = replace(self.assignment, runs=runs)
        set_thread_variables(assignment.threads)
        with suppress(Stopped), _errors_of_submitit_end_the_job():  # the run is saved
            execute_pending_runs(assignment, EventLog(self.folder, str(self.number)))

    def checkpoint(self) -> Any:
        """Return what Slurm queues again when the time is over; unfinished runs resume from their checkpoints."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def write_runs(assignment: Assignment, folder: Path) -> None:
    """Create the folder of an array, with one list of the runs for all elements."""
    with explained_writes(folder):
        folder.mkdir(parents=True)
        write_json(folder / _RUNS, to_json(list(assignment.runs)))


@contextmanager
def _errors_of_submitit_end_the_job() -> Iterator[None]:
    """Keep an error of submitit's signal handler, such as a refused requeue, from counting as one of the run."""
    handler = signal.getsignal(signal.SIGUSR2)
    if not callable(handler):
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except Exception as error:
            raise SystemExit(f"the job is not queued again ({first_line(error)})") from error

    signal.signal(signal.SIGUSR2, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR2, handler)


class SlurmExecutor:
    """Executes runs in a job array, on machines that see the runs folder at the same path.

    Args:
        threads: CPU threads of a run.
        num_gpus: GPUs of a run.
        num_workers: Elements of the array; None for one a run, at most 64.
        options: ``KEY=VALUE`` for Slurm, such as ``partition=gpu`` or ``time=60`` (minutes).
        cluster: ``slurm``; or ``local`` for processes of this machine, to try the executor without Slurm.

    Raises:
        TwinbudError: submitit is not installed, this machine has no Slurm, or an option is wrong.
    """

    def __init__(
        self,
        *,
        threads: int,
        num_gpus: int = 0,
        num_workers: int | None = None,
        options: Sequence[str] = (),
        cluster: Literal["slurm", "local"] = "slurm",
    ) -> None:
        if num_workers is not None and num_workers < 1:
            raise TwinbudError(f"{num_workers} is not a number of jobs", where="--workers", fix="Give 1 or more")
        self.submitit = import_extra("submitit", "slurm", where=WHERE, otherwise="use --executor local")
        self.num_workers = _MAX_TASKS if num_workers is None else num_workers
        self.cluster: Literal["slurm", "local"] = cluster
        parameters = {"time": _MINUTES, "cpus_per_task": threads, "nodes": 1, "ntasks_per_node": 1}
        if num_gpus:
            parameters["gpus_per_node"] = num_gpus
        self.parameters = {**parameters, **_slurm_parameters(options, self.submitit)}
        if cluster == "slurm":
            self._open(Path())

    def _open(self, folder: Path) -> Any:
        """Return submitit's executor for a folder of jobs."""
        if self.cluster == "local":
            local = self.submitit.LocalExecutor(folder)
            local.update_parameters(timeout_min=self.parameters["time"])
            return local
        try:
            slurm = self.submitit.SlurmExecutor(folder, max_num_timeout=_MAX_REQUEUES)
        except RuntimeError as error:
            fix = "Run the command on a login node of the cluster, where 'srun --version' answers"
            raise TwinbudError("Slurm is not installed on this machine", where=WHERE, fix=fix) from error
        slurm.update_parameters(**self.parameters, job_name="twinbud", array_parallelism=self.num_workers)
        return slurm

    def run(self, assignment: Assignment, on_event: OnEvent) -> None:
        """Return when every run has a record or has failed; see ``Executor.run``."""
        _JobSupervisor(self, assignment, on_event).run()

    def submit(self, assignment: Assignment, folder: Path, count: int) -> list[Any]:
        """Submit one array.

        Args:
            assignment: The runs.
            folder: The folder of the array; created.
            count: Number of elements.

        Raises:
            TwinbudError: Slurm refuses the jobs, or the folder cannot be written.
        """
        write_runs(assignment, folder)
        slurm = self._open(folder)
        try:
            with slurm.batch():
                jobs = [slurm.submit(ArrayElement(assignment, folder, number)) for number in range(count)]
        except (self.submitit.core.utils.FailedJobError, OSError) as error:
            fix = "Check the options given with --slurm, such as partition and account"
            raise TwinbudError(f"Slurm refuses the jobs ({first_line(error)})", where=WHERE, fix=fix) from error
        return jobs


class _JobSupervisor:
    """Submits an array, forwards its events, and submits another one while jobs end before the runs do."""

    def __init__(self, executor: SlurmExecutor, assignment: Assignment, on_event: OnEvent) -> None:
        store = replace(assignment.store, path=assignment.store.path.absolute())
        self.executor, self.assignment, self.on_event = executor, replace(assignment, store=store), on_event
        self.stop_requested = False
        self.in_progress: dict[str, None] = {}
        """Ids of the runs that have started and not ended."""

    def run(self) -> None:
        rounds_without_result = 0
        with stop_on_signal(self._request_stop):
            while (unsettled := self._unsettled()) and not self.stop_requested:
                ending = self._run_array(min(len(unsettled), self.executor.num_workers))
                if self.stop_requested:
                    break
                for run_id in self.in_progress:
                    self.on_event(RunInterrupted(run_id, "its job ended"))
                self.in_progress.clear()
                rounds_without_result = rounds_without_result + 1 if len(self._unsettled()) == len(unsettled) else 0
                if rounds_without_result == _MAX_ROUNDS_WITHOUT_RESULT:
                    problem = f"{_MAX_ROUNDS_WITHOUT_RESULT} job arrays ended without a result (the last: {ending})"
                    fix = f"Read the logs in {self.folder}"
                    raise TwinbudError(problem, where=WHERE, fix=fix)
        if self.stop_requested:
            raise Stopped("a signal stopped the jobs")

    def _request_stop(self) -> None:
        self.stop_requested = True

    def _unsettled(self) -> list[str]:
        return [run.run_id for run in self.assignment.runs if not self.assignment.is_settled(run.run_id)]

    def _run_array(self, count: int) -> str:
        """Submit an array and wait for its end; return how its last job ended."""
        self.folder = self.assignment.store.path / JOBS / uuid.uuid4().hex[:12]
        jobs = self.executor.submit(self.assignment, self.folder, count)
        read_events = EventReader(self.folder)
        try:
            while not self.stop_requested:
                is_over = all(job.done() for job in jobs)
                self._forward(read_events)
                if is_over:
                    return _describe_end(jobs[-1])
                time.sleep(_POLL_SECONDS)
        finally:
            self._cancel(jobs)
            self._forward(read_events)
        return "stopped"

    def _forward(self, read_events: EventReader) -> None:
        for event in read_events():
            if isinstance(event, RunStarted):
                self.in_progress[event.run_id] = None
            elif isinstance(event, RunFinished | RunFailed):
                self.in_progress.pop(event.run_id, None)
            self.on_event(event)
        self.on_event(Waiting())

    def _cancel(self, jobs: Sequence[Any]) -> None:
        """Cancel the jobs that are queued or in progress, and give them time to save their runs."""
        for job in jobs:
            if not job.done():
                job.cancel(check=False)
        deadline = time.monotonic() + _SAVE_SECONDS
        while not all(job.done() for job in jobs) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)


def _describe_end(job: Any) -> str:
    """Return the state and the last line of the log of a job."""
    with suppress(Exception):  # submitit raises many kinds for a job without a result
        return " ".join(f"{job.state}, {(job.stderr() or '').strip().splitlines()[-1]}".split())
    return str(job.state)


def _slurm_parameters(options: Sequence[str], submitit: Any) -> dict[str, Any]:
    """Parse ``KEY=VALUE``; keys that submitit does not know become options of sbatch, without a value if it is true."""
    known = submitit.SlurmExecutor._valid_parameters()
    parameters: dict[str, Any] = {}
    others: dict[str, Any] = {}
    given: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        key = key.replace("-", "_")
        if not equals or not key or not value:
            raise TwinbudError(f"'{option}' is not KEY=VALUE", where="--slurm", fix="Give a value: --slurm time=60")
        if key in _OWN:
            fix = "Use --workers and --gpus, and the recipe's threads"
            raise TwinbudError(f"'{key}' is set by twinbud", where="--slurm", fix=fix)
        if key in _NUMBERS and not (value.isascii() and value.isdecimal()):
            problem, fix = f"'{value}' is not a number of {_NUMBERS[key]}", f"Give --slurm {key}=60"
            raise TwinbudError(problem, where=f"--slurm {key}", fix=fix)
        if key in _LISTS:
            parameters.setdefault(key, []).append(value)
            continue
        if (earlier := given.setdefault(key, value)) != value:
            problem = f"two values are given, '{earlier}' and '{value}'"
            raise TwinbudError(problem, where=f"--slurm {key}", fix="Give one of them")
        (parameters if key in known else others)[key] = int(value) if key in _NUMBERS else _flag(key, value)
    if "no_requeue" not in others:  # an element is queued again when its time is over, whatever the cluster's default
        others["requeue"] = True
    return {**parameters, "additional_parameters": others}


def _flag(key: str, value: str) -> str | bool:
    """Return a switch as submitit takes it, else the text."""
    is_off = key in _SWITCHES and value.lower() == "false"
    return False if is_off else value.lower() == "true" or value
