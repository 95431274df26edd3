"""A whole run inside the folder of another one, with settings, page and checkpoints of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twinbud.config.loading import settings_of, with_absolute_paths
from twinbud.config.schema import RunConfig
from twinbud.core.errors import TwinbudError, first_few
from twinbud.runs.run_dir import MARKER, METRICS, read_settings


def finish_inner_run(config: RunConfig, train: Callable[[RunConfig], Any], *, option: str) -> None:
    """Execute an inner run, unless it has finished before.

    Args:
        config: Its settings.
        train: Executes a run.
        option: What asks for the inner run, for errors.

    Raises:
        TwinbudError: The finished run has other settings; see also ``runs.pipeline.train``.
    """
    folder = config.output
    if not (folder.is_dir() and (folder / METRICS).exists() and not (folder / MARKER).exists()):
        train(config)
        return
    saved, wanted = read_settings(folder), settings_of(with_absolute_paths(config))
    different = sorted(name for name, value in wanted.items() if value not in ("auto", saved.get(name)))
    if different:
        problem = f"the finished run of {option} has other settings ({first_few(different, 3)})"
        raise TwinbudError(problem, where=str(folder), fix="Delete this folder, and repeat the command")
