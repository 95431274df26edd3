"""Files that appear whole or not at all, and files of strangers, which are read with care."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from twinbud.core.errors import TwinbudError, explained_writes, first_few

MAX_TEXT_BYTES = 64 * 2**20
"""Larger JSON files are refused unread; the largest that twinbud writes hold a few MiB."""
MAX_YAML_BYTES = 2**20
"""Larger settings files are refused unread."""


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The contents of a regular file; a pipe or a device, which may never end, is refused and not waited for.

    Raises:
        OSError: No such file, one of another kind, or (EFBIG) one of more than ``max_bytes``.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if status.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"{status.st_size / 2**20:.0f} MiB", str(path))
        return file.read(status.st_size)


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: See ``read_bytes``.
        ValueError: Not JSON in UTF-8, or nested too deeply.
    """
    try:
        return json.loads(read_bytes(path, MAX_TEXT_BYTES).decode("utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, in plain types; aliases are refused, since a few can stand for billions of values.

    Raises:
        OSError: See ``read_bytes``.
        ValueError: Not YAML in UTF-8, or nested too deeply.
    """
    try:
        return yaml.load(read_bytes(path, MAX_YAML_BYTES).decode("utf-8"), _PlainLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error) or "nested too deeply") from error


class _PlainLoader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


def printable(name: str) -> str:
    """``name``, with a backslash escape for each byte in which the system gave it that is no UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def require_unicode(names: Iterable[str]) -> None:
    """Refuse file names that no table and no page could hold.

    Raises:
        TwinbudError: Some are not UTF-8 on the disk.
    """
    odd = [printable(name) for name in names if printable(name) != name]
    if odd:
        raise TwinbudError(
            "file names in UTF-8", got=f"{len(odd)} in other bytes", where=first_few(odd, 3), fix="Rename them"
        )


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text beside ``path``, then put it in its place: the old file or the whole new one.

    Raises:
        TwinbudError: The disk is full or the folder may not be written.
    """
    draft = _draft(path)
    with explained_writes(path):
        try:
            draft.write_text(text, encoding="utf-8", newline="\n")
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON, whole or not at all; NaN is refused."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _draft(path: Path) -> Path:
    """Where what will stand at ``path`` is made."""
    return path.with_name(f".{path.name}.{os.getpid()}.draft")


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
    draft = _draft(path)
    with explained_writes(path):
        draft.mkdir(parents=True)
    try:
        yield draft
        with explained_writes(path):
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


def require_new_file(path: Path, *, force: bool = False) -> None:
    """Refuse a place for an output file that is taken, or where none can be written.

    Raises:
        TwinbudError: A file stands there and ``force`` is off, a folder does, or the folder of the file is missing
            or may not be written.
    """
    draft = _draft(path)
    with explained_writes(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        try:
            draft.open("wb").close()
        finally:
            draft.unlink(missing_ok=True)
    if os.path.lexists(path) and not force:
        raise TwinbudError(
            "a new file to write",
            got="one that exists",
            where=str(path),
            fix="Choose another --output, or replace it with --force",
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
