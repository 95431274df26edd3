"""The local executor: worker processes with CPU cores of their own, replaced when they die."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import NamedTuple

from twinbud.core.errors import Stopped, TwinbudError
from twinbud.core.signals import stop_on_signal
from twinbud.study.executors.base import (
    Assignment,
    OnEvent,
    RunFailed,
    RunFinished,
    RunInterrupted,
    RunStarted,
    Waiting,
)
from twinbud.study.executors.gpus import assign_gpus, require_shared_memory
from twinbud.study.executors.worker import STOP, WorkerFailed, run_worker

_POLL_SECONDS = 0.25
_MAX_DEATHS = 3
"""A run whose worker has died this often has failed: it may need more memory than the machine has."""
_SAVE_SECONDS = 30.0
"""How long a terminated worker may take to save its run before it is killed."""

CoreSet = tuple[int, ...]


class LocalExecutor:
    """Executes runs in processes of this machine.

    Args:
        core_sets: The CPU cores of each worker, one set a worker; an empty set means any core.
        gpus: GPUs that the workers use in turn, as ``CUDA_VISIBLE_DEVICES`` spells them; none if they use the CPU.
    """

    def __init__(self, core_sets: tuple[CoreSet, ...], gpus: tuple[str, ...] = ()) -> None:
        self.core_sets, self.gpus = core_sets, gpus

    @property
    def num_workers(self) -> int:
        """Number of runs that are executed at the same time, at most."""
        return len(self.core_sets)

    def run(self, assignment: Assignment, on_event: OnEvent) -> None:
        """Return when every run has a record or has failed; see ``Executor.run``."""
        core_sets = self.core_sets[: len(assignment.runs)]
        gpus: tuple[str | None, ...] = (None,) * len(core_sets)
        if self.gpus:
            require_shared_memory(assignment.runs, len(core_sets), self.gpus)
            gpus = assign_gpus(len(core_sets), self.gpus)
        places = tuple(_Place(cores, gpu) for cores, gpu in zip(core_sets, gpus, strict=True))
        _Supervisor(assignment, places, on_event).run()


class _Place(NamedTuple):
    """The CPU cores and the GPU of a worker."""

    cores: CoreSet
    gpu: str | None


@dataclass(eq=False)
class _Worker:
    """A worker process.

    Attributes:
        process: The process.
        pipe: The executor's end.
        place: The process's CPU cores and GPU.
        run_id: The run in progress, or None.
        has_closed: Whether the pipe is at its end, so that no event is left to read.
        is_stopping: Whether a stop was requested.
    """

    process: SpawnProcess
    pipe: Connection
    place: _Place
    run_id: str | None = None
    has_closed: bool = False
    is_stopping: bool = False


class _Supervisor:
    """Starts workers, forwards their events, and replaces those that die."""

    def __init__(self, assignment: Assignment, places: tuple[_Place, ...], on_event: OnEvent) -> None:
        self.assignment, self.places, self.on_event = assignment, places, on_event
        self.workers: list[_Worker] = []
        self.num_deaths: Counter[str | None] = Counter()
        """Worker deaths by the run in progress; None for a worker that had no run."""
        self.stop_requested = False

    def run(self) -> None:
        with stop_on_signal(self._request_stop):
            try:
                for place in self.places:
                    self.workers.append(self._start(place))
                while self.workers:
                    self._poll()
                    if self.stop_requested:
                        _request_stop(self.workers)
                    self.on_event(Waiting())
            finally:
                _terminate(self.workers)
        if self.stop_requested:
            raise Stopped("a signal stopped the workers")

    def _request_stop(self) -> None:
        self.stop_requested = True

    def _start(self, place: _Place) -> _Worker:
        context = get_context("spawn")  # a forked process would inherit locks of torch's thread pools
        parent_end, child_end = context.Pipe()
        args = (self.assignment, place.cores, len(self.places), child_end, place.gpu)
        process = context.Process(target=run_worker, args=args, name="twinbud-worker", daemon=True)
        process.start()
        child_end.close()
        return _Worker(process, parent_end, place)

    def _poll(self) -> None:
        """Read the events that have arrived, and handle workers that have ended."""
        pipes = {worker.pipe: worker for worker in self.workers if not worker.has_closed}
        sentinels = {worker.process.sentinel: worker for worker in self.workers if worker.has_closed}
        for ready in connection.wait([*pipes, *sentinels], timeout=_POLL_SECONDS):
            if isinstance(ready, int):
                self._reap(sentinels[ready])
            else:
                self._receive(pipes[ready])  # type: ignore[index]

    def _receive(self, worker: _Worker) -> None:
        """Read one event. The pipe ends after the worker's last event, also if the worker is killed."""
        try:
            event = worker.pipe.recv()
        except (EOFError, OSError):
            worker.has_closed = True
            return
        if isinstance(event, WorkerFailed):
            raise TwinbudError(event.problem, where=event.where, fix=event.fix)
        if isinstance(event, RunStarted):
            worker.run_id = event.run_id
        elif isinstance(event, RunFinished | RunFailed):
            worker.run_id = None
        self.on_event(event)

    def _reap(self, worker: _Worker) -> None:
        """Remove a worker that has ended, and replace it if it has died."""
        self.workers.remove(worker)
        worker.process.join()
        worker.pipe.close()
        if worker.process.exitcode == 0 or self.stop_requested:
            return
        self.num_deaths[worker.run_id] += 1
        ending = _describe_exit(worker.process.exitcode)
        has_died_too_often = self.num_deaths[worker.run_id] >= _MAX_DEATHS
        if worker.run_id is not None:
            self._report_death(worker.run_id, ending, has_failed=has_died_too_often)
        elif has_died_too_often:
            problem = f"{_MAX_DEATHS} worker processes died before they started a run (the last: {ending})"
            fix = "Read their errors above, or give --workers 0, which runs in this process"
            raise TwinbudError(problem, where="twinbud study", fix=fix)
        if not all(self.assignment.is_settled(run.run_id) for run in self.assignment.runs):
            self.workers.append(self._start(worker.place))

    def _report_death(self, run_id: str, ending: str, *, has_failed: bool) -> None:
        self.on_event(RunInterrupted(run_id, f"its worker process died ({ending})"))
        if has_failed:
            reason = f"its worker process died {_MAX_DEATHS} times ({ending}); memory may be too small"
            self.assignment.store.record_failure(run_id, reason)
            self.on_event(RunFailed(run_id, reason))


def _request_stop(workers: Iterable[_Worker]) -> None:
    """Request a stop from each worker once: a second signal would kill it before its run is saved."""
    for worker in workers:
        if not worker.is_stopping:
            worker.is_stopping = True
            with suppress(OSError):
                worker.pipe.send(STOP)  # a run that is just ending misses the signal
            worker.process.terminate()


def _terminate(workers: Iterable[_Worker]) -> None:
    """End all workers; runs in progress are saved if time allows."""
    _request_stop(workers)
    for worker in workers:
        worker.process.join(_SAVE_SECONDS)
        worker.process.kill()


def _describe_exit(code: int | None) -> str:
    """Return ``SIGKILL`` or ``exit code 1``."""
    if code is not None and code < 0:
        with suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def assign_cores(num_workers: int | None, threads: int, *, num_gpus: int = 0) -> tuple[CoreSet, ...]:
    """Give each worker as many CPU cores as its run has threads; no core belongs to two workers.

    Args:
        num_workers: Number of workers, at least 1; None for as many as the cores allow, and one a GPU.
        threads: CPU threads of a run, as the recipe sets them.
        num_gpus: GPUs that the runs train on. Workers are then not bound to cores, since a run has further threads that
            decode and transfer images.

    Raises:
        TwinbudError: More workers than the cores allow; they would slow each other down.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    max_workers = max(1, len(cores) // threads)
    count = (num_gpus or max_workers) if num_workers is None else num_workers
    if num_gpus:
        return ((),) * count
    if count > max_workers:
        raise TwinbudError(
            f"{count} workers need {count * threads} cores ({threads} for each run), but this process may use"
            f" {len(cores)}",
            where="--workers",
            fix=f"Give at most --workers {max_workers}; runs that share cores slow each other down",
        )
    if threads > len(cores):
        return ((),)
    return tuple(tuple(cores[index * threads : (index + 1) * threads]) for index in range(count))
