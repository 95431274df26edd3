"""A run folder: locked while a process works in it, and marked as unfinished from its first file to its last."""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from twinbud.config.loading import checked_settings, run_config
from twinbud.config.schema import RunConfig
from twinbud.config.settings import all_settings
from twinbud.core.errors import TwinbudError, explained_writes, first_few, place_setting
from twinbud.core.files import dump_yaml, read_bytes, read_yaml, require_free, write_text
from twinbud.data.seen_images import SEEN_IMAGES
from twinbud.training.phases import PHASES

MARKER = "UNFINISHED"
"""Exists until all other files are written; its text names the process at work, or why the run failed."""
LOCK = ".lock"
"""Locked by the process that works in the folder; the system releases the lock when that process dies."""
_MAX_MARKER_BYTES = 2**16
_PATIENCE_SECONDS = 0.5
"""Longer than another command takes to look whether the folder is locked."""
_RESTORE = "Restore the file that 'twinbud train' wrote"
CONFIG = "config.yaml"
METRICS = "metrics.json"
SPLIT = "split.csv"
SUMMARY = "summary.json"
REPORT = "report.html"
RECOVERY_FILE = "recovery.json"
TEACHER = "teacher"
"""The fine-tuned teacher, a model folder."""
NAIVE = "naive"
"""The run folder of the second run of ``--measure-leak``."""
FOLDS = "folds"
"""The run folders of the runs without one fold of the labelled images, until all have finished."""
OUT_OF_FOLD = "out_of_fold.json"
"""What these runs say of the images of their folds."""
EXPLANATIONS = "explanations"
"""Output of ``twinbud explain`` for the run's own test images."""
CHECKPOINTS = "checkpoints"
"""Exists in an unfinished run; ``--resume`` continues from its content."""
TEACHING_SETTINGS = "teach.yaml"
"""The settings of ``twinbud teach``, in a teacher folder."""


@dataclass(frozen=True, kw_only=True)
class FolderKind:
    """What a folder may hold that a command makes.

    Attributes:
        noun: What the folder is, in errors.
        files: Names of all files that the command writes, by folder; no other file is ever replaced.
        required: Names that a finished one holds.
    """

    noun: str
    files: Mapping[str, tuple[str, ...]]
    required: frozenset[str]


_EVENTS, _DRAFTS = "events.out.tfevents.*", ".*.draft"
_SAVED = ("step-*", ".step-*.draft")
_RUN_FILES = {
    ".": (
        MARKER, LOCK, CONFIG, METRICS, CHECKPOINTS, "model", TEACHER, SPLIT, "left_out.csv", "plan.json",
        "environment.json", "history.csv", RECOVERY_FILE, _EVENTS, "predictions.csv", SUMMARY, REPORT, SEEN_IMAGES,
        EXPLANATIONS, OUT_OF_FOLD, _DRAFTS,
    ),
    "model": ("config.json", "model.safetensors", "README.md", "trust.json", "trust.safetensors", _DRAFTS),
    TEACHER: ("config.json", "model.safetensors", "tuning.json"),
    EXPLANATIONS: ("maps", "explanations.csv", "explanations.html", "left_out.csv"),
    f"{EXPLANATIONS}/maps": ("*.png",),
    CHECKPOINTS: (*_SAVED, *PHASES),
    **{f"{CHECKPOINTS}/{phase}": _SAVED for phase in PHASES},
}  # fmt: skip
RUN_FOLDER = FolderKind(
    noun="run",
    files={
        **_RUN_FILES,
        ".": (*_RUN_FILES["."], NAIVE, FOLDS),
        **{f"{NAIVE}/{folder}".removesuffix("/."): names for folder, names in _RUN_FILES.items()},
    },
    required=frozenset({CONFIG, METRICS}),
)
"""Output of ``twinbud train``."""
TEACHER_FOLDER = FolderKind(
    noun="teacher",
    files={
        ".": (
            MARKER, LOCK, TEACHING_SETTINGS, METRICS, CHECKPOINTS, "config.json", "model.safetensors", "README.md",
            SEEN_IMAGES, "left_out.csv", "environment.json", "history.csv", _EVENTS, _DRAFTS,
        ),
        CHECKPOINTS: _SAVED,
    },
    required=frozenset({TEACHING_SETTINGS, METRICS}),
)  # fmt: skip
"""Output of ``twinbud teach``: timm's own layout, with what is known of the network beside it."""


def require_run_output(folder: Path, *, force: bool, resume: bool = False, kind: FolderKind = RUN_FOLDER) -> None:
    """Refuse an output folder in use; even ``force`` replaces only the files of an earlier run.

    Raises:
        TwinbudError: A process works in the folder; it holds files and neither ``force`` nor ``resume`` is on; it
            holds files that are not of a run; or the run to resume has finished.
    """
    with explained_writes(folder):
        is_locked = (folder / LOCK).exists()
    if is_locked:
        with _locked(folder):
            pass
    _require_replaceable(folder, force=force, resume=resume, kind=kind)


def _require_replaceable(folder: Path, *, force: bool, resume: bool, kind: FolderKind) -> None:
    with explained_writes(folder):  # one look: another process may start meanwhile
        held = {path.name for path in folder.iterdir()} - {LOCK} if folder.is_dir() else set()
    unfinished, finished = (name in held for name in (MARKER, METRICS))
    if resume and finished and not unfinished:
        raise TwinbudError(
            "the run has finished",
            where=str(folder),
            fix="Nothing is left to do; train it again with --force and without --resume",
        )
    if unfinished and not (force or resume):
        raise TwinbudError("the folder holds an unfinished run", where=str(folder), fix=_ways_on(folder))
    if not unfinished and (held or not folder.is_dir()):
        require_free(folder, force=force)
    foreign = _foreign(folder, kind) if held else []
    if foreign:
        problem = f"the folder holds files that are not of a {kind.noun} ({first_few(foreign, 3)})"
        raise TwinbudError(problem, where=str(folder), fix="Choose another --output, or move these files")
    if held and not unfinished and not held >= kind.required:
        lacking = " and no ".join(sorted(kind.required - held))
        raise TwinbudError(
            f"the folder has files of a {kind.noun}, but no {lacking}: it is not a finished {kind.noun} that --force"
            " may replace",
            where=str(folder),
            fix="Choose another --output, or delete the folder",
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of an existing run folder to work in it, and remove the lock's file at the end.

    Raises:
        TwinbudError: Another process, or another thread of this one, holds the lock.
    """
    with _locked(folder):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows keeps an open file
                (folder / LOCK).unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of an existing run folder.

    Raises:
        TwinbudError: Another process, or another thread of this one, holds the lock.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=_PATIENCE_SECONDS)
    except Timeout as error:
        setting = place_setting()
        fix = "Wait for it or stop it" + (f", or choose another {setting}" if setting else "")
        raise TwinbudError(f"{_worker_of(folder)} works in this run folder", where=str(folder), fix=fix) from error
    except (OSError, NotImplementedError) as error:  # a file system without locks
        logging.getLogger("twinbud").warning("%s cannot be locked (%s): start only one run in it", folder, error)
    try:
        yield
    finally:
        lock.release()


def _worker_of(folder: Path) -> str:
    """Return which process wrote the mark of an unfinished run, as far as it is known."""
    with suppress(OSError, ValueError):
        text = read_bytes(folder / MARKER, _MAX_MARKER_BYTES).decode("utf-8")
        if found := re.search(r"process \d+ on \S+", text):
            return found[0]
    return "another process"


def _foreign(folder: Path, kind: FolderKind) -> list[str]:
    """Return the names in a folder that its command never writes; linked folders, which stay, are not searched."""
    return sorted(
        path.relative_to(folder).as_posix()
        for name, patterns in kind.files.items()
        if not (folder / name).is_symlink() and (folder / name).is_dir()
        for path in (folder / name).iterdir()
        if not any(fnmatchcase(path.name, pattern) for pattern in patterns)
    )


def _ways_on(folder: Path) -> str:
    """Return what to do about an unfinished run."""
    started = any((folder / CHECKPOINTS).rglob("step-*"))
    return f"{'Continue' if started else 'Repeat'} it with --resume, or replace it with --force"


@contextmanager
def started_run(
    folder: Path, *, force: bool, resume: bool = False, kind: FolderKind = RUN_FOLDER, keep: Collection[str] = ()
) -> Iterator[Path]:
    """Yield a run folder, locked and marked as unfinished; empty but for what a run resumes from.

    The mark goes when the context ends without an error.

    Args:
        folder: The folder, made if it is missing.
        force: Replace an earlier run.
        resume: Continue an unfinished run: keep its checkpoints.
        kind: What the folder may hold.
        keep: Names that a resumed run keeps besides.

    Raises:
        TwinbudError: See ``require_run_output``; the disk is full or the folder may not be written.
    """
    require_run_output(folder, force=force, resume=resume, kind=kind)
    with explained_writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        _require_replaceable(folder, force=force, resume=resume, kind=kind)  # what another process did meanwhile
        with _marked(folder, keep={CHECKPOINTS, *keep} if resume else set()):
            yield folder


@contextmanager
def _marked(folder: Path, keep: set[str]) -> Iterator[None]:
    """Mark a run folder as unfinished until the context ends without an error, and empty it but for ``keep``."""
    marker = folder / MARKER
    with explained_writes(folder):
        # the mark comes first: a process that dies while it deletes an earlier run leaves no finished one
        write_text(marker, f"Unfinished: process {os.getpid()} on {platform.node()} works here.\n")
        _empty(folder, keep={MARKER, LOCK, *keep})
    try:
        yield
    except BaseException as error:
        with suppress(OSError):  # on a full disk the first text remains
            marker.write_text(f"This run did not finish: {str(error) or type(error).__name__}\n", encoding="utf-8")
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


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Save resolved settings as ``config.yaml``, which ``--config`` reads."""
    text = "# Resolved settings of this run; twinbud train --config THIS_FILE --output RUN repeats it.\n"
    write_text(folder / CONFIG, text + dump_yaml(settings))


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the resolved settings of a finished run, each of which has a valid value.

    Raises:
        TwinbudError: The folder is not a run, the run did not finish, or its settings are damaged.
    """
    if os.path.lexists(folder / MARKER):
        fix = "Finish it: repeat its 'twinbud train' command with --resume, or with --force to start again"
        raise TwinbudError("the run has not finished", where=str(folder), fix=fix)
    try:
        content = read_yaml(folder / CONFIG)
    except (OSError, ValueError) as error:
        raise TwinbudError(
            f"the folder is not a run: {CONFIG} cannot be read",
            where=str(folder),
            fix="Give the --output of 'twinbud train'",
        ) from error
    try:
        settings = checked_settings(content, str(folder / CONFIG))
    except TwinbudError as error:
        raise TwinbudError(error.problem, where=error.where, fix=_RESTORE) from error
    if settings.get("data") is None:
        raise TwinbudError(
            "the file does not name the images: 'data' is missing", where=str(folder / CONFIG), fix=_RESTORE
        )
    return settings


def read_run_config(folder: Path) -> RunConfig:
    """Return the configuration of a finished run, to repeat it.

    Raises:
        TwinbudError: See ``read_settings``; or settings are missing or contradict each other.
    """
    settings = read_settings(folder)
    if missing := [name for name in all_settings() if name not in settings]:
        problem = f"the run cannot be repeated: the file lacks {first_few(missing, 3)}"
        fix = "Restore the file that 'twinbud train' wrote, or train again with this version"
        raise TwinbudError(problem, where=str(folder / CONFIG), fix=fix)
    try:
        return run_config(settings, output=folder)
    except TwinbudError as error:
        raise error.at(str(folder / CONFIG)) from error
