"""The worker process of the local executor.

Importing this module does not import torch, whose thread pools are sized on import: the process gets its cores first.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection

from twinbud.core.errors import Stopped, TwinbudError
from twinbud.core.signals import heeded_signals
from twinbud.study.executors.base import Assignment, Event
from twinbud.study.executors.gpus import VISIBLE
from twinbud.study.executors.run_loop import execute_pending_runs

STOP = "stop"
"""The message from the executor that requests a stop."""


@dataclass(frozen=True)
class WorkerFailed:
    """The worker cannot go on with any run; the parts of its ``TwinbudError``."""

    problem: str
    where: str | None
    fix: str | None


def run_worker(
    assignment: Assignment, cores: tuple[int, ...], num_workers: int, pipe: Connection, gpu: str | None = None
) -> None:
    """Execute runs until all are settled or the executor requests a stop.

    Args:
        assignment: The runs; other workers have the same list.
        cores: The CPU cores to use; empty for any.
        num_workers: How many workers share the machine, for the records.
        pipe: Sends events to the executor, and receives ``STOP``.
        gpu: The only GPU to use, as ``CUDA_VISIBLE_DEVICES`` spells it; None for any.
    """
    if gpu is not None:
        os.environ[VISIBLE] = gpu
    _configure_process(cores, assignment.threads)

    def send(message: Event | WorkerFailed) -> None:
        with suppress(OSError):  # the executor has died: the run in progress ends well all the same
            pipe.send(message)

    with pipe, suppress(Stopped, KeyboardInterrupt):
        try:
            execute_pending_runs(assignment, send, num_workers=num_workers, should_stop=pipe.poll)
        except TwinbudError as error:
            send(WorkerFailed(error.problem, error.where, error.fix))


def _configure_process(cores: tuple[int, ...], threads: int) -> None:
    """Set cores and threads, and leave the terminal's process group: the executor forwards a signal, once."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    for number in {*heeded_signals(), signal.SIGTERM}:  # the study stops its workers by SIGTERM
        signal.signal(number, signal.default_int_handler)
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    set_thread_variables(threads)
    threading.Thread(target=_stop_with_parent, daemon=True).start()


def set_thread_variables(threads: int) -> None:
    """Set how many threads numerical libraries start, which they read when they are imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)


def _stop_with_parent() -> None:
    """Save and stop when the executor is killed, as if a stop was requested."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
