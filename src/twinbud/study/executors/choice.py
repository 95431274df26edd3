"""Choose the executor that the options of a study name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twinbud.config.schema import TrainingConfig
from twinbud.core.errors import TwinbudError, unknown_choice
from twinbud.study.executors.base import Executor
from twinbud.study.executors.gpus import list_gpus
from twinbud.study.executors.in_process import InProcessExecutor
from twinbud.study.executors.local import LocalExecutor, assign_cores
from twinbud.study.executors.names import EXECUTORS, ExecutorName
from twinbud.training.amp import choose_device


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """Where the runs of a study are executed.

    Attributes:
        name: ``local``: processes of this machine; ``ray``: tasks of a Ray cluster; ``slurm``: a job array of Slurm.
        num_workers: Runs that are executed at the same time, at most; None for as many as there is room for. With
            ``local``, 0 executes the runs in the calling process.
        address: ``HOST:PORT`` of a Ray cluster; None for the one that this machine is in.
        num_gpus: GPUs of a run on a cluster; a fraction of one with ``ray``.
        slurm: ``KEY=VALUE`` for Slurm.
    """

    name: ExecutorName = "local"
    num_workers: int | None = None
    address: str | None = None
    num_gpus: float | None = None
    slurm: Sequence[str] = ()


def choose_executor(options: ExecutorOptions, training: TrainingConfig) -> Executor:
    """Return the executor.

    Args:
        options: The options.
        training: The settings of a run; all runs have its threads and its device.

    Raises:
        TwinbudError: An option is wrong or has no effect, or the cluster cannot be used.
    """
    if options.name not in EXECUTORS:
        raise unknown_choice("--executor", options.name, EXECUTORS)
    threads = training.threads or 1
    _require_effect(options)
    if options.name == "slurm":
        return _slurm_executor(options, threads, training)
    if options.name == "ray":
        from twinbud.study.executors.ray import RayExecutor

        return RayExecutor(
            address=options.address,
            threads=threads,
            num_gpus=options.num_gpus,
            device=training.device,
            max_runs=options.num_workers,
        )
    return _local_executor(options.num_workers, threads, training)


def _require_effect(options: ExecutorOptions) -> None:
    """Refuse options of another executor."""
    num_gpus = None if options.num_gpus is None else f"{options.num_gpus:g}"
    for value, option, names in (
        (options.address, "--address", ("ray",)),
        (num_gpus, "--gpus", ("ray", "slurm")),
        (" ".join(options.slurm) or None, "--slurm", ("slurm",)),
    ):
        if value is not None and options.name not in names:
            fix = f"Leave it out, or give --executor {' or '.join(names)}"
            raise TwinbudError(f"'{value}' has no effect with --executor {options.name}", where=option, fix=fix)


def _slurm_executor(options: ExecutorOptions, threads: int, training: TrainingConfig) -> Executor:
    from twinbud.study.executors.slurm import SlurmExecutor

    num_gpus = float(training.device == "cuda") if options.num_gpus is None else options.num_gpus
    if num_gpus < 0 or not float(num_gpus).is_integer():
        problem = f"'{num_gpus:g}' is not a whole number of at least 0, and Slurm gives whole GPUs"
        raise TwinbudError(problem, where="--gpus", fix="Give --gpus 0, 1 or more")
    return SlurmExecutor(
        threads=threads, num_gpus=int(num_gpus), num_workers=options.num_workers, options=options.slurm
    )


def _local_executor(num_workers: int | None, threads: int, training: TrainingConfig) -> Executor:
    if num_workers == 0:
        return InProcessExecutor()
    if num_workers is not None and num_workers < 0:
        raise TwinbudError(f"{num_workers} is negative", where="--workers", fix="Give 1 or more, or 0 for no processes")
    gpus = list_gpus() if choose_device(training.device).type == "cuda" else ()
    return LocalExecutor(assign_cores(num_workers, threads, num_gpus=len(gpus)), gpus)
