"""The flat Python API of studies; torch is imported when the function is called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from twinbud.core.progress import SilentProgress, TerminalProgress

if TYPE_CHECKING:
    from twinbud.config.schema import Profile
    from twinbud.study.executors.base import Executor
    from twinbud.study.run import Study


def study(
    recipe: str | Path,
    *,
    data: Mapping[str, str | Path] | None = None,
    runs: str | Path = "runs/study",
    only: Mapping[str, object] | None = None,
    profile: Profile | None = None,
    num_workers: int | None = None,
    executor: Executor | None = None,
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
            and one on a GPU.
        executor: Executes the runs instead of worker processes of this machine; ``num_workers`` then has no effect.
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
    from twinbud.study.run import StudyRequest, execute_study, plan_study, require_success

    request = StudyRequest(
        recipe=Path(recipe),
        runs=Path(runs),
        data=[f"{name}={path}" for name, path in (data or {}).items()],
        only=[f"{key}={_joined(values)}" for key, values in (only or {}).items()],
        profile=profile,
        num_workers=num_workers,
        keep_models=keep_models,
        pixel_cache=pixel_cache,
    )
    progress = TerminalProgress() if show_progress else SilentProgress()
    done = execute_study(request, plan_study(request, progress, executor=executor), progress)
    require_success(done)
    return done


def _joined(values: object) -> str:
    if isinstance(values, Iterable) and not isinstance(values, str):
        return ",".join(map(str, values))
    return str(values)
