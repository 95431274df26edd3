"""The place of this process among several that were started together, as ``torchrun`` does.

They are told by environment variables. Nothing here imports torch, so that every command can ask at no cost.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from twinbud.core.errors import TwinbudError

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torch needs to find the other processes; other tools set some of these, but not all."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The place of a process among those of its command.

    Attributes:
        rank: Number of the process, from 0.
        count: Number of processes.
        local_rank: Number of the process on its machine, from 0.
        local_count: Number of processes on this machine.
    """

    rank: int
    count: int
    local_rank: int
    local_count: int


def launched() -> Launch | None:
    """Return the place of this process among several; None if it is the only one.

    Raises:
        TwinbudError: An environment variable does not hold such a number.
    """
    if not all(os.environ.get(name) for name in _NAMES):
        return None
    count = _number("WORLD_SIZE", 1)
    if count == 1:
        return None
    rank = _number("RANK", 0, count)
    local_count = _number("LOCAL_WORLD_SIZE", 1) if "LOCAL_WORLD_SIZE" in os.environ else count
    local_rank = _number("LOCAL_RANK", 0, local_count) if "LOCAL_RANK" in os.environ else rank
    return Launch(rank=rank, count=count, local_rank=local_rank, local_count=local_count)


def is_first_of_machine() -> bool:
    """Return whether this process is the only one, or the first of several on its machine."""
    try:
        launch = launched()
    except TwinbudError:
        return True
    return launch is None or launch.local_rank == 0


def require_single_process(command: str) -> None:
    """Refuse a command that is not divided among processes.

    Raises:
        TwinbudError: This process is one of several.
    """
    launch = launched()
    if launch is not None:
        problem = f"{launch.count} processes were started together, but only 'twinbud train' is divided among several"
        raise TwinbudError(problem, where=command, fix="Start it once, without torchrun")


def _number(name: str, least: int, end: int | None = None) -> int:
    text = os.environ[name]
    if not (text.isascii() and text.isdecimal()) or int(text) < least or (end is not None and int(text) >= end):
        below = "" if end is None else f" below {end}"
        problem = f"'{text}' is not a whole number from {least}{below}"
        raise TwinbudError(problem, where=f"environment variable {name}", fix="Start the processes with torchrun")
    return int(text)
