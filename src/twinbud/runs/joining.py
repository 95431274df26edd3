"""Meeting and leaving of the processes of one run: an error in one of them ends all, with one line.

The line is printed by the first process. Before another one leaves, it puts its error where the first one finds it when
it notices that the connection is lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from twinbud.config.schema import Device
from twinbud.core.errors import ReportedElsewhereError, Stopped, TwinbudError, first_line
from twinbud.core.launch import Launch
from twinbud.training.processes import ConnectionLostError, Processes

_MEETING = timedelta(minutes=10)
_WAITING = timedelta(days=365)
"""Of one process for another: the first one may evaluate or recover for hours. A lost connection is noticed at once."""
_HEARING = timedelta(seconds=10)
_WHERE = "a run of several processes"
_REASON, _HEARD = "twinbud/reason", "twinbud/heard"
_FAILED, _STOPPED, _INTERRUPTED = 2, 75, 130


@contextmanager
def joined(launch: Launch, device: Device) -> Iterator[Processes]:
    """Meet the other processes, and leave them when the context ends.

    Args:
        launch: The place of this process.
        device: The setting; on GPUs, each process takes one.

    Raises:
        TwinbudError: The processes cannot reach each other, there are more of them than GPUs, or another one failed.
        ReportedElsewhereError: The first process, which this is not, tells why the run ends.
    """
    backend = _choose_backend(launch, device)
    store = _meet(launch, backend)
    try:
        yield Processes(launch.rank, launch.count)
    except BaseException as error:
        left = _leave_as_first(error, store) if launch.rank == 0 else _leave_as_other(error, store, launch)
        if left is error:
            raise
        raise left from error
    dist.destroy_process_group()


def _choose_backend(launch: Launch, device: Device) -> str:
    """Return how tensors travel, and take the GPU of this process."""
    if device == "cpu" or not torch.cuda.is_available():
        return "gloo"
    available = torch.cuda.device_count()
    if launch.local_count > available:
        problem = f"{launch.local_count} processes of this machine need a GPU each, but PyTorch finds {available}"
        fix = f"Start at most {available} on each machine, or use --device cpu"
        raise TwinbudError(problem, where=_WHERE, fix=fix)
    torch.cuda.set_device(launch.local_rank)
    return "cpu:gloo,cuda:nccl"


def _meet(launch: Launch, backend: str) -> Any:
    """Return the store that the processes share."""
    try:
        store, rank, count = next(iter(rendezvous("env://", timeout=_MEETING)))
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=_WAITING)
    except (RuntimeError, ValueError) as error:
        problem = f"process {launch.rank + 1} of {launch.count} cannot reach the others ({first_line(error)})"
        fix = "Start all of them with torchrun; between machines, open the port of its --rdzv-endpoint"
        raise TwinbudError(problem, where=_WHERE, fix=fix) from error
    return store


def _leave_as_first(error: BaseException, store: Any) -> BaseException:
    """Return what to raise: the error, or that of the process that has left before."""
    found = None
    if isinstance(error, ConnectionLostError):
        found = _read_reason(store)
    else:
        _give_reason(store, _text(error), _code(error))
    dist.destroy_process_group()
    with suppress(RuntimeError):
        store.set(_HEARD, "1")
    return TwinbudError(found["text"].rstrip("."), where=found["process"]) if found else error


def _leave_as_other(error: BaseException, store: Any, launch: Launch) -> BaseException:
    """Return what to raise: the error itself only if the first process does not report it."""
    if isinstance(error, ConnectionLostError | Stopped):
        found = _read_reason(store)
        dist.destroy_process_group()
        return ReportedElsewhereError(found["code"] if found else _code(error))
    _give_reason(store, _text(error), _code(error), f"process {launch.rank + 1} of {launch.count}")
    dist.destroy_process_group()
    with suppress(RuntimeError):
        store.wait([_HEARD], _HEARING)
        if isinstance(error, TwinbudError | KeyboardInterrupt):
            return ReportedElsewhereError(_code(error))
    return error


def _text(error: BaseException) -> str:
    if isinstance(error, TwinbudError):
        return str(error)
    return first_line(error) if isinstance(error, Exception) else "interrupted"


def _code(error: BaseException) -> int:
    if isinstance(error, Stopped):
        return _STOPPED
    return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else _FAILED


def _give_reason(store: Any, text: str, code: int, process: str = "the first process") -> None:
    """Write why this process leaves, unless another one has written."""
    with suppress(RuntimeError):
        store.compare_set(_REASON, "", json.dumps({"text": text, "code": code, "process": process}))


def _read_reason(store: Any) -> dict[str, Any] | None:
    with suppress(RuntimeError):
        if store.check([_REASON]):
            return json.loads(store.get(_REASON))
    return None
