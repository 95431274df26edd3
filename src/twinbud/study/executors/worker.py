"""One worker: a process of its own that takes runs nobody has claimed, one at a time, until none is left.

Nothing of torch is imported before the process has been given its cores, since thread pools are sized on import.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from typing import Literal, NamedTuple

from twinbud.core.errors import Stopped, TwinbudError
from twinbud.core.progress import Advance
from twinbud.core.signals import SIGNALS
from twinbud.runs.resource_cache import ResourceCache
from twinbud.study.grid import PlannedRun
from twinbud.study.store import RunStore

_LOOK_AGAIN_SECONDS = 0.5
"""How often a worker with nothing to take looks whether another process has let go of a run."""


class Message(NamedTuple):
    """What a worker tells the study; the run's identity, and a text or the steps done."""

    kind: Literal["started", "stepped", "done", "failed", "stopped"]
    run_id: str = ""
    text: str = ""
    num_steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a worker needs to know.

    Attributes:
        folder: Where records, claims and run folders are.
        runs: Those to be done, in order; other workers have the same list.
        failures: Of runs that failed before this study began, when: they are tried again, later failures are not.
        cores: The cores to stay on; empty for any.
        threads: Threads of the thread pools.
        num_workers: How many share the machine, for the record.
        keep_models: Whether the run folders keep their trained models.
        pixel_cache: Whether decoded images are kept for other processes.
    """

    folder: RunStore
    runs: Sequence[PlannedRun]
    failures: Mapping[str, str]
    cores: tuple[int, ...]
    threads: int
    num_workers: int
    keep_models: bool
    pixel_cache: bool = True


def work(assignment: Assignment, reports: Connection) -> None:
    """The life of a worker; it ends when every run is done or has failed, or when it is asked to stop."""
    _settle_in(assignment)
    with reports:
        tell = _Teller(reports)
        try:
            _take_runs(assignment, ResourceCache(), tell)
        except (Stopped, KeyboardInterrupt):
            tell(Message("stopped"))


class _Teller:
    """The worker's end of the pipe to the study."""

    def __init__(self, reports: Connection) -> None:
        self.reports = reports

    def __call__(self, message: Message) -> None:
        """Tell it; a study that has gone hears nothing, and its runs must not fail for that."""
        with suppress(OSError):
            self.reports.send(message)

    def is_to_stop(self) -> bool:
        """Whether the study has said so, or has gone."""
        return self.reports.poll()


def _settle_in(assignment: Assignment) -> None:
    """Take the share of the machine, and be deaf to the terminal: the study passes a stop on, once."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    if assignment.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, assignment.cores)
    for pool in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[pool] = str(assignment.threads)
    threading.Thread(target=_stop_with_parent, daemon=True).start()


def _stop_with_parent() -> None:
    """A study that was killed leaves no workers behind: they save and stop, as if asked to."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _take_runs(assignment: Assignment, resource_cache: ResourceCache, tell: _Teller) -> None:
    waiting = list(assignment.runs)
    while waiting and not tell.is_to_stop():
        waiting = [run for run in waiting if not is_settled(assignment.folder, run.run_id, assignment.failures)]
        if not any(_take(assignment, run, resource_cache, tell) for run in waiting):
            # others are at work on all that is left; should one of them die, its run is taken over
            time.sleep(_LOOK_AGAIN_SECONDS if waiting else 0)


def is_settled(folder: RunStore, run_id: str, failures: Mapping[str, str]) -> bool:
    """Whether a run is done, or has failed since the failures given were looked up."""
    if folder.is_done(run_id):
        return True
    failure = folder.failure(run_id)
    return failure is not None and failure[0] != failures.get(run_id)


def _take(assignment: Assignment, run: PlannedRun, resource_cache: ResourceCache, tell: _Teller) -> bool:
    """Do the run, unless another process has it or has just finished it; whether it was done here."""
    from twinbud.study.execute import execute_run

    folder = assignment.folder
    with folder.claim(run.run_id) as is_mine:
        if not is_mine or is_settled(folder, run.run_id, assignment.failures):
            return False
        tell(Message("started", run.run_id))
        try:
            text = execute_run(
                run,
                folder,
                resource_cache,
                _Reports(tell, run.run_id),
                num_workers=assignment.num_workers,
                keep_model=assignment.keep_models,
                pixel_cache=assignment.pixel_cache,
            )
        except Stopped:
            raise
        except Exception as error:  # whatever one run meets, the others go on
            reason = str(error) if isinstance(error, TwinbudError) else f"{type(error).__name__}: {error}"
            folder.fail(run.run_id, " ".join(reason.split()), traceback.format_exc())
            tell(Message("failed", run.run_id, reason))
        else:
            tell(Message("done", run.run_id, text, run.num_steps))
    return True


class _Reports:
    """The pipeline's progress, passed on to the study."""

    def __init__(self, tell: _Teller, run_id: str) -> None:
        self.tell, self.run_id = tell, run_id
        self.num_steps = 0

    def note(self, text: str) -> None:
        """Dropped: with several runs at once nobody could tell whose line it is."""
        del text

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        """Pass on each step of recovery and training, counted through all phases; other bars show as their label."""
        takes_steps = label.startswith(("recovering", "training"))

        def advance(done: int, text: str = "", /) -> None:
            if takes_steps:
                self.tell(Message("stepped", self.run_id, text, self.num_steps + done))

        if not takes_steps:
            self.tell(Message("stepped", self.run_id, label, self.num_steps))
        yield advance
        if takes_steps:
            self.num_steps += total
