"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twinbud.errors import TwinbudError, explained_writes, first_few


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text beside ``path``, then put it in its place: the old file or the whole new one.

    Raises:
        TwinbudError: The disk is full or the folder may not be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    with explained_writes(path):
        try:
            draft.write_text(text, encoding="utf-8", newline="\n")
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A folder to fill, which takes the place of ``path`` only when the context ends well.

    Args:
        path: Where the folder will stand.
        force: Replace what stands there, if the new folder has all that it holds.

    Raises:
        TwinbudError: Something stands there that is not to be replaced, the disk is full, or the place may not
            be written.
    """
    require_free(path, force=force)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    with explained_writes(path):
        draft.mkdir(parents=True)
        try:
            yield draft
            if path.exists():
                _require_like(path, draft)
                shutil.rmtree(path)
            draft.replace(path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _require_like(old: Path, new: Path) -> None:
    others = sorted({entry.name for entry in old.iterdir()} - {entry.name for entry in new.iterdir()})
    if others:
        raise TwinbudError(
            "an earlier output of the same kind to replace",
            got=f"a folder that holds something else ({first_few(others, 3)})",
            where=str(old),
            fix="Choose another --output",
        )


def require_free(path: Path, *, force: bool = False) -> None:
    """Refuse an output folder that already holds something.

    Raises:
        TwinbudError: It does, and ``force`` is off; or a file stands there.
    """
    with explained_writes(path):
        is_folder, exists = path.is_dir(), path.exists()
        is_free = not exists or (is_folder and (force or not any(path.iterdir())))
    if is_free:
        return
    if is_folder:
        raise TwinbudError(
            "a new or empty output folder",
            got="one that holds files",
            where=str(path),
            fix="Choose another --output, or replace it with --force",
        )
    raise TwinbudError("an output folder", got="a file", where=str(path), fix="Choose another --output")
