"""A run on the disk: marked unfinished from its first file to its last."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from twinbud.core.errors import TwinbudError, explained_writes, first_few
from twinbud.core.files import read_yaml, require_free, write_text
from twinbud.training.phases import PHASES

MARKER = "UNFINISHED"
"""Stands in a run folder until everything else does; it says why, if the run failed."""
CONFIG = "config.yaml"
METRICS = "metrics.json"
RECOVERY_FILE = "recovery.json"
CHECKPOINTS = "checkpoints"
"""Stands in an unfinished run; ``--resume`` goes on from what is in it."""
_FILES = {
    ".": (
        MARKER, CONFIG, METRICS, CHECKPOINTS, "model", "split.csv", "left_out.csv", "plan.json", "environment.json",
        "history.csv", RECOVERY_FILE, "events.out.tfevents.*", "predictions.csv", "report.html", ".*.draft",
    ),
    "model": ("config.json", "model.safetensors", "README.md", ".*.draft"),
    CHECKPOINTS: ("step-*", ".step-*.draft", *PHASES),
    **{f"{CHECKPOINTS}/{phase}": ("step-*", ".step-*.draft") for phase in PHASES},
}  # fmt: skip
"""All that a run leaves, by folder; nothing else is ever replaced."""


def require_run_output(folder: Path, *, force: bool, resume: bool = False) -> None:
    """Refuse an output folder in use; even ``force`` replaces nothing but what an earlier run left.

    Raises:
        TwinbudError: It holds files and neither ``force`` nor ``resume`` is on; it holds something that is not of a
            run; or the run to resume has finished.
    """
    with explained_writes(folder):
        unfinished, finished = ((folder / name).exists() for name in (MARKER, METRICS))
    if resume and finished and not unfinished:
        raise TwinbudError(
            "an unfinished run to resume",
            got="a finished one",
            where=str(folder),
            fix="Nothing is left to do; train it anew with --force",
        )
    if unfinished and not (force or resume):
        raise TwinbudError(
            "a new or empty output folder", got="an unfinished run", where=str(folder), fix=_ways_on(folder)
        )
    if not unfinished:
        require_free(folder, force=force)
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    foreign = _foreign(folder) if held else []
    if foreign or (held and not unfinished and not held >= {CONFIG, METRICS}):
        raise TwinbudError(
            "an earlier run to replace",
            got=f"a folder that holds something else{f' ({first_few(foreign, 3)})' if foreign else ''}",
            where=str(folder),
            fix="Choose another --output, or move what is not the run's",
        )


def _foreign(folder: Path) -> list[str]:
    """What no run leaves in its folder; what links lead to is not looked at, for it is never touched."""
    return sorted(
        path.relative_to(folder).as_posix()
        for name, patterns in _FILES.items()
        if not (folder / name).is_symlink() and (folder / name).is_dir()
        for path in (folder / name).iterdir()
        if not any(fnmatchcase(path.name, pattern) for pattern in patterns)
    )


def _ways_on(folder: Path) -> str:
    """What to do about an unfinished run."""
    started = any((folder / CHECKPOINTS).rglob("step-*"))
    return f"If it has stopped, {'go on with it' if started else 'begin it again'} with --resume, or anew with --force"


@contextmanager
def started_run(folder: Path, *, force: bool, resume: bool = False) -> Iterator[Path]:
    """A run folder, marked unfinished until the context ends well; empty but for checkpoints to resume from.

    Raises:
        TwinbudError: See ``require_run_output``; a full disk or a forbidden folder.
    """
    require_run_output(folder, force=force, resume=resume)
    marker = folder / MARKER
    with explained_writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _empty(folder, keep={MARKER, CHECKPOINTS} if resume else set())
        marker.write_text("This run has not finished; its files are incomplete.\n", encoding="utf-8")
    try:
        yield folder
    except BaseException as error:
        _explain(marker, error)
        raise
    with explained_writes(folder):
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        marker.unlink()


def _empty(folder: Path, keep: set[str]) -> None:
    for path in folder.iterdir():
        if path.name in keep and not path.is_symlink():  # a link may lead out of the run
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _explain(marker: Path, error: BaseException) -> None:
    with suppress(OSError):  # on a full disk the marker's first text still stands
        marker.write_text(f"This run did not finish: {str(error) or type(error).__name__}\n", encoding="utf-8")


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Save resolved settings as ``config.yaml``, which ``--config`` reads back."""
    text = "# Resolved settings of this run; twinbud train --config THIS_FILE --output RUN repeats it.\n"
    write_text(folder / CONFIG, text + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def read_settings(folder: Path) -> dict[str, Any]:
    """The resolved settings of a finished run.

    Raises:
        TwinbudError: The folder is not a run, or the run did not finish.
    """
    if (folder / MARKER).exists():
        raise TwinbudError("a finished run", got="one that has not finished", where=str(folder), fix=_ways_on(folder))
    try:
        settings = read_yaml(folder / CONFIG)
    except (OSError, ValueError) as error:
        raise TwinbudError(
            "a run folder with config.yaml",
            got="none that can be read",
            where=str(folder),
            fix="Give the --output of 'twinbud train'",
        ) from error
    if not isinstance(settings, dict):
        raise TwinbudError("settings by name", got="something else", where=str(folder / CONFIG))
    return settings
