"""The error that a user can cause, one line long: where, what is wrong with which value, and what to do."""

from __future__ import annotations

import copyreg
import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class TwinbudError(Exception):
    """A problem that the caller can solve, described in one line.

    Args:
        problem: What is wrong with which value, as a clause that names the value ("'1.5' is not a share in (0, 1]",
            "the folder holds no images").
        where: File, row, option, field or step that it concerns.
        fix: What to do, as an imperative sentence without its full stop.

    The text reads ``WHERE: PROBLEM. FIX.`` and never holds a line break.
    """

    def __init__(self, problem: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.problem, self.where, self.fix = problem, where, fix
        text = f"{where}: " if where else ""
        text += f"{self.problem}."
        if fix:
            text += f" {fix}" if fix.endswith("?") else f" {fix.rstrip('.')}."
        super().__init__(" ".join(text.split()))

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep the text in copies and pickles, which would else be made of it again."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    def at(self, place: str) -> TwinbudError:
        """Return the same error with ``place`` before its own place."""
        return TwinbudError(self.problem, where=f"{place}: {self.where}" if self.where else place, fix=self.fix)


class Stopped(Exception):  # noqa: N818 - not an error: the run was asked to stop, and can go on
    """A run has been stopped on request; the text says after which step, and how to continue."""


class ReportedElsewhereError(Exception):
    """Another process of the same command says why it ends; this one says nothing.

    Args:
        exit_code: With which this process ends.
    """

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(f"exit code {exit_code}")


def unknown_choice(what: str, value: object, choices: Iterable[str]) -> TwinbudError:
    """Return the error for a value outside a list of choices; it names the nearest choice."""
    valid = list(choices)
    near = difflib.get_close_matches(str(value), valid, n=1)
    return TwinbudError(
        f"'{value}' is not one of {', '.join(valid)}",
        where=what,
        fix=f"Did you mean '{near[0]}'?" if near else None,
    )


def first_few(items: Iterable[object], limit: int = 5) -> str:
    """Return the head of a list as ``a, b, c and 4 more``, short enough for one line."""
    named = [str(item) for item in items]
    shown = ", ".join(named[:limit])
    return shown if len(named) <= limit else f"{shown} and {len(named) - limit} more"


def first_line(error: Exception) -> str:
    r"""Return an error of another library as ``TYPE: FIRST LINE``.

    >>> first_line(ValueError("no header\n(see the manual)"))
    'ValueError: no header'
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


_FULL = ("Free some space or choose another {setting}", "Free some space")
_CLOSED = ("Choose another {setting}", "Make it writable")
_WRONG = ("Check {setting}", "Check the path")
_WRITE_PROBLEMS = {
    errno.ENOSPC: ("the disk is full", _FULL),
    errno.EDQUOT: ("the disk quota is used up", _FULL),
    errno.EACCES: ("there is no permission to write", _CLOSED),
    errno.EPERM: ("writing is not permitted", _CLOSED),
    errno.EROFS: ("the file system is read-only", _CLOSED),
    errno.ENOENT: ("its parent folder does not exist", _WRONG),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", _WRONG),
    errno.EEXIST: ("a file stands where a folder is needed", _WRONG),
    errno.EISDIR: ("a folder stands where a file is needed", _WRONG),
    errno.ENAMETOOLONG: ("the path is too long", _WRONG),
    errno.ELOOP: ("the path contains a loop of symbolic links", _WRONG),
}
"""What is wrong, and what to do where a setting chooses the place and where none does."""
_place_setting: ContextVar[str | None] = ContextVar("place_setting", default="--output")


@contextmanager
def writes_to(setting: str | None) -> Iterator[None]:
    """Name the option that chooses the place of all writes in the context, for their errors; None: no option does."""
    token = _place_setting.set(setting)
    try:
        yield
    finally:
        _place_setting.reset(token)


def place_setting() -> str | None:
    """Return the option that chooses where the current command writes; None if there is none."""
    return _place_setting.get()


_images_setting: ContextVar[tuple[str, str | None]] = ContextVar("images_setting", default=("--data", None))


@contextmanager
def images_named(name: str, fix: str | None = None) -> Iterator[None]:
    """Call the place of all images in the context ``name`` in errors, and advise ``fix``; None: the usual advice."""
    token = _images_setting.set((name, fix))
    try:
        yield
    finally:
        _images_setting.reset(token)


def images_setting() -> str:
    """Return what gives the place of the images."""
    return _images_setting.get()[0]


def images_place(shown: object) -> str:
    """Return where images are, for an error: what gives the place, and the place as it is ``shown``."""
    return f"{images_setting()} {shown}"


def images_fix(usual: str) -> str:
    """Return what to do about a place of images that cannot be used."""
    return _images_setting.get()[1] or usual


@contextmanager
def explained_writes(where: object, setting: str | None = None) -> Iterator[None]:
    """Turn an error of the file system, met while writing to ``where``, into a TwinbudError.

    Args:
        where: The file or folder that is written.
        setting: The option or environment variable that chooses the place; None: that of ``writes_to``.

    Raises:
        TwinbudError: The disk is full, the place may not be written, or the path leads nowhere. Other errors pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _WRITE_PROBLEMS:
            raise
        problem, (fix, fix_in_place) = _WRITE_PROBLEMS[error.errno]
        setting = setting or place_setting()
        fix = fix.format(setting=setting) if setting else fix_in_place
        raise TwinbudError(problem, where=str(where), fix=fix) from error
