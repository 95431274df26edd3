"""The one error that a user can cause, told in one line: where, what is wrong with which value, and what to do."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class TwinbudError(Exception):
    """A problem that the caller can solve, told in one line.

    Args:
        problem: What is wrong with which value, as a clause that names the value ("'1.5' is not a share in (0, 1]",
            "the folder holds no images").
        where: File, row, option, field or step that it concerns.
        fix: What to do, as an imperative sentence without its full stop.
        got: Until every call is rewritten: makes ``problem`` read ``expected PROBLEM, got GOT``.

    The text reads ``WHERE: PROBLEM. FIX.`` and never holds a line break.
    """

    def __init__(
        self, problem: str, *, where: str | None = None, fix: str | None = None, got: str | None = None
    ) -> None:
        self.expected, self.got = problem, got
        self.problem = problem if got is None else f"expected {problem}, got {got}"
        self.where = where
        self.fix = fix
        text = f"{where}: " if where else ""
        text += f"{self.problem}."
        if fix:
            text += f" {fix}" if fix.endswith("?") else f" {fix.rstrip('.')}."
        super().__init__(" ".join(text.split()))

    def at(self, place: str) -> TwinbudError:
        """The same error, with the larger place that its own lies in."""
        return TwinbudError(self.problem, where=f"{place}: {self.where}" if self.where else place, fix=self.fix)


class Stopped(Exception):  # noqa: N818 - not an error: the run was asked to stop, and can go on
    """A run was asked to stop; the text says where it stands and how to go on."""


def unknown_choice(what: str, value: object, choices: Iterable[str]) -> TwinbudError:
    """The error for a word that is none of the valid ones, with the nearest of them named."""
    valid = list(choices)
    near = difflib.get_close_matches(str(value), valid, n=1)
    return TwinbudError(
        f"one of {', '.join(valid)}",
        got=f"'{value}'",
        where=what,
        fix=f"Did you mean '{near[0]}'?" if near else None,
    )


def first_few(items: Iterable[object], limit: int = 5) -> str:
    """``a, b, c and 4 more``: enough of a list to find the trouble, short enough for one line."""
    named = [str(item) for item in items]
    shown = ", ".join(named[:limit])
    return shown if len(named) <= limit else f"{shown} and {len(named) - limit} more"


@contextmanager
def explained_writes(where: object) -> Iterator[None]:
    """Turn a full disk or a forbidden folder, met while writing to ``where``, into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TwinbudError(
                "room to write",
                got="a full disk",
                where=str(where),
                fix="Free some space or choose another --output",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise TwinbudError(
                "a folder that may be written",
                got=error.strerror or "no permission",
                where=str(where),
                fix="Choose another --output",
            ) from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
            raise TwinbudError(
                "a place to write", got=(error.strerror or "none").lower(), where=str(where), fix="Check --output"
            ) from error
        raise
