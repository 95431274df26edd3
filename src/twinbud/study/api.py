"""The flat Python API of studies; torch is imported when the function is called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from twinbud.core.progress import SilentProgress, TerminalProgress
from twinbud.core.torch_state import own_torch_state

if TYPE_CHECKING:
    from twinbud.config.schema import Profile
    from twinbud.study.executors.base import Executor
    from twinbud.study.executors.names import ExecutorName
    from twinbud.study.run import Study


@own_torch_state()
def study(
    recipe: str | Path,
    *,
    data: Mapping[str, str | Path] | None = None,
    runs: str | Path = "runs/study",
    only: Mapping[str, object] | None = None,
    profile: Profile | None = None,
    num_workers: int | None = None,
    executor: Executor | ExecutorName = "local",
    address: str | None = None,
    num_gpus: float | None = None,
    slurm: Mapping[str, object] | None = None,
    keep_models: bool = False,
    pixel_cache: bool = True,
    show_progress: bool = True,
) -> Study:
    """Execute all missing runs of a recipe; a stopped study continues with the same call.

    Worker processes start by importing the calling script, so call this below ``if __name__ == "__main__":``, or
    with ``num_workers=0``.

    Args:
        recipe: The YAML file; see ``recipes/``.
        data: Path of each image set of the recipe, or the name of a public set: ``"SET"``, or ``"SET=FOLDER"`` with a
            local copy. A public set that the recipe names needs no path.
        runs: The runs folder; recipes with the same folder share runs.
        only: Execute these runs only, such as ``{"fraction": 0.05, "sampling": [0, 1, 2]}``.
        profile: Replaces the recipe's profile.
        num_workers: Worker processes; 0 executes the runs in this process, None starts as many as the CPU cores allow
            and one a GPU. On a cluster: runs that are executed at the same time, at most.
        executor: ``local`` for worker processes of this machine, ``ray`` for tasks of a Ray cluster, ``slurm`` for a
            job array; or an object that executes the runs, with which ``num_workers`` and the options below have no
            effect.
        address: ``HOST:PORT`` of the Ray cluster; None for ``$RAY_ADDRESS``, else the one that this machine is in.
        num_gpus: GPUs of a run on a cluster; a fraction of one with ``ray``. None for 1 where a Ray cluster has GPUs,
            or where the device is ``cuda``; else 0.
        slurm: Options for Slurm, such as ``{"partition": "gpu", "time": 60}``, in minutes.
        keep_models: Keep the trained model of every run.
        pixel_cache: Cache decoded images on the disk for all workers.
        show_progress: Report on standard error.

    Returns:
        The study with the state of its runs.

    Raises:
        TwinbudError: Recipe, images, teacher or runs folder cannot be used, or runs have failed.
        Stopped: The system requested a stop.

    Example:
        >>> import twinbud
        >>> done = twinbud.study("recipe.yaml", data={"shades": "images"}, num_workers=0)  # doctest: +SKIP
        >>> len(done.missing)  # doctest: +SKIP
        0
    """
    from twinbud.core.launch import require_single_process
    from twinbud.study.run import StudyRequest, execute_study, plan_study, require_success

    require_single_process("twinbud.study()")
    request = StudyRequest(
        recipe=Path(recipe),
        runs=Path(runs),
        data=[f"{name}={path}" for name, path in (data or {}).items()],
        only=[f"{key}={_joined(values)}" for key, values in (only or {}).items()],
        profile=profile,
        num_workers=num_workers,
        executor=executor if isinstance(executor, str) else "local",
        address=address,
        num_gpus=num_gpus,
        slurm=[f"{key}={value}" for key, value in (slurm or {}).items()],
        keep_models=keep_models,
        pixel_cache=pixel_cache,
    )
    progress = TerminalProgress() if show_progress else SilentProgress()
    planned = plan_study(request, progress, executor=None if isinstance(executor, str) else executor)
    done = execute_study(request, planned, progress)
    require_success(done)
    return done


def _joined(values: object) -> str:
    if isinstance(values, Iterable) and not isinstance(values, str):
        return ",".join(map(str, values))
    return str(values)
