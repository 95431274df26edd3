"""The names of the executors, for options; importing them imports nothing else."""

from __future__ import annotations

from typing import Literal, get_args

ExecutorName = Literal["local", "ray", "slurm"]
EXECUTORS: tuple[ExecutorName, ...] = get_args(ExecutorName)
