"""The processes of a study: each has its share of the machine, is watched, and is replaced if it dies."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from twinbud.core.errors import Stopped, TwinbudError
from twinbud.core.signals import stop_on_signal
from twinbud.study.executors.worker import Assignment, Message, is_settled, work

_LOOK_SECONDS = 0.25
_MOST_INTERRUPTIONS = 3
"""A run that its process did not survive so often has failed: it may need more memory than there is."""
_PATIENCE_SECONDS = 30.0


@dataclass(kw_only=True)
class StudyStatus:
    """How far a study has come, for whoever watches.

    Attributes:
        total: Runs asked for.
        done: Runs with a record, also such as other processes made.
        failed: Runs that have failed since it began.
        interrupted: How often a run's process ended under it.
        running: Of each run in progress here, its steps so far and what it last said.
        seconds_left: An estimate, or None before there is one.
        line: What has just happened, or an empty text.
    """

    total: int
    done: int = 0
    failed: int = 0
    interrupted: int = 0
    running: dict[str, tuple[int, str]] = field(default_factory=dict)
    seconds_left: float | None = None
    line: str = ""


Watch = Callable[[StudyStatus], None]


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    reports: Connection
    run: str = ""
    is_open: bool = True
    is_asked_to_stop: bool = False


class Workers:
    """Does the runs of an assignment with several processes.

    Args:
        assignment: What each worker gets, its cores aside.
        shares: The cores of each worker; empty for any. As many workers as there are shares.
        watch: Told of everything that happens, a few times a second.
    """

    def __init__(self, assignment: Assignment, shares: tuple[tuple[int, ...], ...], watch: Watch) -> None:
        self.assignment, self.shares, self.watch = assignment, shares, watch
        self.runs = {run.run_id: run for run in assignment.runs}
        self.status = StudyStatus(total=len(self.runs))
        self.interruptions: Counter[str] = Counter()
        self.unsettled = list(self.runs)
        self.stop_requested = False
        self.clock = _Clock(self.runs)

    def run(self) -> StudyStatus:
        """Work until every run is done or has failed.

        Raises:
            Stopped: The system asked for a stop; runs in progress were saved.
            TwinbudError: Workers end before they have taken a run.
        """
        workers: dict[int, _Worker] = {}
        with stop_on_signal(self._ask_to_stop):  # workers save and stop
            for place in range(len(self.shares)):
                workers[place] = self._start(place)
            try:
                while workers:
                    self._look(workers)
                    if self.stop_requested:
                        _ask_to_stop(workers.values())
                    self._tell()
            finally:
                _end(workers)
        if self.stop_requested:
            raise Stopped(
                f"stopped with {self.status.done} of {self.status.total} runs done; the same command goes on from there"
            )
        return self.status

    def _start(self, place: int) -> _Worker:
        context = get_context("spawn")  # a fork would inherit the locks of torch's thread pools
        receiver, sender = context.Pipe()
        assignment = replace(self.assignment, cores=self.shares[place])
        process = context.Process(target=work, args=(assignment, sender), name=f"twinbud-{place}", daemon=True)
        process.start()
        sender.close()
        return _Worker(process, receiver)

    def _look(self, workers: dict[int, _Worker]) -> None:
        """Hear what the workers say, and see who has ended."""
        heard = {worker.reports: worker for worker in workers.values() if worker.is_open}
        ended: dict[Any, int] = {worker.process.sentinel: place for place, worker in workers.items()}
        for ready in connection.wait([*heard, *ended], timeout=_LOOK_SECONDS):
            if ready in heard:
                self._hear(heard[ready])  # type: ignore[index]
            elif not workers[ended[ready]].is_open:
                self._reap(workers, ended[ready])

    def _hear(self, worker: _Worker) -> None:
        """One message; the end of the pipe comes after the last one, whatever the worker died of."""
        try:
            message: Message = worker.reports.recv()
        except (EOFError, OSError):
            worker.is_open = False
            return
        status = self.status
        if message.kind in ("started", "stepped"):
            worker.run = message.run_id
            status.running[message.run_id] = message.num_steps, message.text
            self.clock.step(message)
        elif message.kind in ("done", "failed"):
            self.clock.step(message)
            status.running.pop(message.run_id, None)
            status.line = f"{self.runs[message.run_id].label}: {message.text}"
            worker.run = ""

    def _reap(self, workers: dict[int, _Worker], place: int) -> None:
        """A worker has ended: well, since nothing was left to take or a stop was asked for, or badly."""
        worker = workers.pop(place)
        worker.process.join()
        worker.reports.close()
        self.status.running.pop(worker.run, None)
        if worker.process.exitcode == 0 or self.stop_requested:
            return
        ending = f"its process ended with {_ending(worker.process.exitcode)}"
        self.interruptions[worker.run] += 1
        if not worker.run:
            self._require_workers_that_start(ending)
        else:
            self._interrupted(worker.run, ending)
        self._count()
        if self.unsettled:
            workers[place] = self._start(place)

    def _require_workers_that_start(self, ending: str) -> None:
        if self.interruptions[""] >= _MOST_INTERRUPTIONS:
            raise TwinbudError("workers that take runs", got=ending, where="twinbud study", fix="Try --workers 1")

    def _interrupted(self, run_id: str, ending: str) -> None:
        """A process has ended under its run: another takes it over, unless that has happened too often."""
        label = self.runs[run_id].label
        self.status.interrupted += 1
        self.status.line = f"{label}: {ending}; another worker takes over"
        if self.interruptions[run_id] >= _MOST_INTERRUPTIONS:
            reason = f"{ending}, {_MOST_INTERRUPTIONS} times; there may be too little memory"
            self.assignment.folder.fail(run_id, reason)
            self.status.line = f"{label}: {reason}"

    def _count(self) -> None:
        """Look which runs are done or have failed, here or in another process."""
        folder, failures = self.assignment.folder, self.assignment.failures
        for run_id in [run_id for run_id in self.unsettled if is_settled(folder, run_id, failures)]:
            self.unsettled.remove(run_id)
            self.status.done += folder.is_done(run_id)
            self.status.failed += not folder.is_done(run_id)

    def _tell(self) -> None:
        self._count()
        self.status.seconds_left = self.clock.seconds_left(self.unsettled)
        self.watch(self.status)
        self.status.line = ""

    def _ask_to_stop(self) -> None:
        self.stop_requested = True


def _ask_to_stop(workers: Iterable[_Worker]) -> None:
    """Once each: a second signal would end a worker before it has saved."""
    for worker in workers:
        if not worker.is_asked_to_stop:
            worker.is_asked_to_stop = True
            with suppress(OSError):
                worker.reports.send("stop")  # a signal that comes as a run ends is lost on it
            worker.process.terminate()


def _end(workers: Mapping[int, _Worker]) -> None:
    """Whatever has gone wrong here, runs in progress are saved if there is time."""
    for worker in workers.values():
        worker.process.terminate()
    for worker in workers.values():
        worker.process.join(_PATIENCE_SECONDS)
        worker.process.kill()


class _Clock:
    """How long the rest will take, from the steps taken so far."""

    def __init__(self, runs: dict[str, Any]) -> None:
        self.steps = {run_id: run.num_steps for run_id, run in runs.items()}
        self.begun: dict[str, int] = {}
        self.reached: dict[str, int] = {}
        self.start = 0.0

    def step(self, message: Message) -> None:
        if message.kind == "stepped" and message.num_steps:
            self.start = self.start or time.monotonic()
            self.begun.setdefault(message.run_id, message.num_steps)  # a resumed run begins late
            self.reached[message.run_id] = message.num_steps
        elif message.kind == "done" and message.run_id in self.begun:
            self.reached[message.run_id] = message.num_steps

    def seconds_left(self, unsettled: list[str]) -> float | None:
        """None before a rate is known."""
        taken = sum(self.reached[run_id] - self.begun[run_id] for run_id in self.begun)
        if taken == 0:
            return None
        left = sum(self.steps[run_id] - self.reached.get(run_id, 0) for run_id in unsettled)
        return left * (time.monotonic() - self.start) / taken


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def share_cores(num_workers: int | None, threads: int, *, on_gpu: bool) -> tuple[tuple[int, ...], ...]:
    """The cores of each worker: as many as its run has threads, none of them shared.

    Args:
        num_workers: How many; None for as many as the cores carry, and one on a GPU.
        threads: Threads of a run, which the recipe fixes.
        on_gpu: Whether runs train on a GPU, where workers may be more than the cores carry.

    Raises:
        TwinbudError: More workers than the cores carry: their threads would wait for one another.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    most = max(1, len(cores) // threads)
    count = (1 if on_gpu else most) if num_workers is None else num_workers
    if count < 1:
        raise TwinbudError("at least one worker", got=str(count), where="--workers")
    if on_gpu:  # a run on it has threads that decode, fetch and wait besides
        return ((),) * count
    if count > most:
        raise TwinbudError(
            f"at most {most} workers ({len(cores)} cores, {threads} for each run)",
            got=str(count),
            where="--workers",
            fix="Runs that share cores slow each other down more than they gain",
        )
    if threads > len(cores):
        return ((),)
    return tuple(tuple(cores[place * threads : (place + 1) * threads]) for place in range(count))
