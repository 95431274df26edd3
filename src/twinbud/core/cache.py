"""The folder that keeps generated, converted and decoded files between runs.

A cache saves time and decides nothing. Where it cannot be written, its users go on without it, or with the temporary
folder of this process, and say so in one line.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

CACHE_VARIABLE = "TWINBUD_CACHE"
_XDG = ("XDG_CONFIG_HOME", "XDG_CACHE_HOME")
"""Where Matplotlib keeps its settings and its list of fonts; below the home directory where they are not set."""
_ABANDONED_SECONDS = 24 * 3600
"""A draft to which nothing was added for so long has no writer any more."""


def cache_folder() -> Path:
    """Return twinbud's cache: ``$TWINBUD_CACHE``, else ``$XDG_CACHE_HOME/twinbud``, else ``~/.cache/twinbud``.

    The folder is named, not created. Without a home directory it is the temporary folder of this process.
    """
    try:
        if chosen := os.environ.get(CACHE_VARIABLE):
            return Path(chosen).expanduser()
        if shared := os.environ.get("XDG_CACHE_HOME"):
            return Path(shared).expanduser() / "twinbud"
        return Path.home() / ".cache" / "twinbud"
    except RuntimeError:
        warn_of_cache("the home directory is unknown, so that nothing is kept after this process")
        return temporary_folder()


def temporary_folder() -> Path:
    """Return a folder that only this user can read and that is deleted when the process ends."""
    return Path(_temporary_directory().name)


@functools.cache
def _temporary_directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="twinbud-", ignore_cleanup_errors=True)


def delete_abandoned(folder: Path, pattern: str) -> None:
    """Delete the drafts in a folder of the cache to which nothing was added for a day: those of killed processes.

    Args:
        folder: The folder, which may be missing.
        pattern: Names of its drafts, files or folders, and of nothing else.
    """
    with suppress(OSError):
        for draft in list(folder.glob(pattern)):
            with suppress(OSError):  # another process may delete it first
                changed = max(path.stat().st_mtime for path in (draft, *draft.rglob("*/")))
                if time.time() - changed < _ABANDONED_SECONDS:
                    continue
                if draft.is_dir():
                    shutil.rmtree(draft, ignore_errors=True)
                else:
                    draft.unlink()


@functools.cache  # once for each text
def warn_of_cache(problem: str) -> None:
    """Log in one line what the cache cannot do, and which variable chooses another folder."""
    logging.getLogger("twinbud").warning("cache: %s; set %s to a folder that can be written", problem, CACHE_VARIABLE)


def reason_of(error: Exception) -> str:
    """Return why a file could not be written or read, in a few words without its path."""
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__


def use_temporary_home() -> None:
    """Give this process, and those that it starts, temporary folders where the user's home is missing or read-only.

    PyTorch's compiler, Matplotlib and the client of the Hugging Face hub keep caches in the home directory, or in a
    folder that is named after the user, and fail or complain where the system knows neither.
    """
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - Path.expanduser raises instead
        if CACHE_VARIABLE not in os.environ:
            warn_of_cache("the home directory is unknown, so that nothing is kept after this command")
        os.environ["HOME"] = str(temporary_folder())
        return
    own = (Path.home() / ".config", Path.home() / ".cache")
    folders = (os.environ.get(name) or folder for name, folder in zip(_XDG, own, strict=True))
    if "MPLCONFIGDIR" not in os.environ and not all(_can_be_written(Path(folder)) for folder in folders):
        os.environ["MPLCONFIGDIR"] = str(temporary_folder())  # Matplotlib makes one itself, and says so in two lines


def _can_be_written(folder: Path) -> bool:
    """Return whether ``folder``, or the nearest folder above it that exists, can be written."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK)
