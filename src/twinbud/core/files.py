"""Write files whole or not at all, and read files of unknown origin within limits."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import yaml

from twinbud.core.errors import TwinbudError, explained_writes, first_few

Parsed = TypeVar("Parsed")

MAX_TEXT_BYTES = 64 * 2**20
"""Larger JSON files are refused unread; the largest that twinbud writes hold a few MiB."""
MAX_YAML_BYTES = 2**20
"""Larger settings files are refused unread."""
_MAX_DIGITS = 20
"""Integers of more digits are refused: no count or size has so many, and no float holds some of them."""


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Return the contents of a regular file; a pipe or a device, which may never end, is refused.

    Raises:
        OSError: No such file, one of another kind, or (EFBIG) one of more than ``max_bytes``.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise OSError(errno.EFBIG, f"{size / 2**20:.0f} MiB", str(path))
        return file.read(size)


def read_head(path: Path, num_bytes: int) -> bytes:
    """Return the first bytes of a regular file, fewer where it is shorter.

    Raises:
        OSError: No such file, or one of another kind.
    """
    with open_regular(path) as file:
        return file.read(num_bytes)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to read its bytes; refuse a pipe or a device without waiting for it.

    Raises:
        OSError: No such file, or one of another kind.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, whose numbers are finite as in all files of ``write_json``.

    Raises:
        OSError: See ``read_bytes``.
        ValueError: Not JSON in UTF-8, nested too deeply, or a number is NaN, infinite or has too many digits.
    """
    text = read_bytes(path, MAX_TEXT_BYTES).decode("utf-8")
    try:
        return json.loads(text, parse_int=_integer, parse_float=_finite, parse_constant=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"the number {digits[:_MAX_DIGITS]}… has too many digits")
    return int(digits)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file in plain types.

    Only null, true, false and decimal numbers are not text: ``on``, ``no``, ``010`` and ``1:30`` mean what is
    written, and keys are always text. Aliases are refused, since a few can stand for billions of values, and so are
    keys that are written twice.

    Raises:
        OSError: See ``read_bytes``.
        ValueError: Not YAML in UTF-8, an alias, a tag, a repeated key, or nested too deeply; the text names the line.
    """
    try:
        return yaml.load(read_bytes(path, MAX_YAML_BYTES).decode("utf-8"), _PlainLoader)
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark, error.problem or "not YAML"
        raise ValueError(f"line {mark.line + 1}: {problem}" if mark else problem) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error) or "nested too deeply") from error


def dump_yaml(content: Any) -> str:
    """Return YAML text that ``read_yaml`` reads as ``content``; keys keep their order."""
    return yaml.dump(content, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)


class _PlainLoader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not supported", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        content: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is not text", problem_mark=key.start_mark)
            if key.value in content:
                raise yaml.MarkedYAMLError(problem=f"'{key.value}' is written twice", problem_mark=key.start_mark)
            content[key.value] = self.construct_object(value, deep=deep)
        return content


class _PlainDumper(yaml.SafeDumper):
    """Quotes text that either YAML 1.1 or ``read_yaml`` would read as another type."""


_PlainLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"0|-?[1-9][0-9]*", list("-0123456789")),
    ("float", r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    for _kind in (_PlainLoader, _PlainDumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def printable(name: str) -> str:
    """Return a file name with a backslash escape for each byte that is not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def require_unicode(names: Iterable[str]) -> None:
    """Refuse file names that no table or page could hold.

    Raises:
        TwinbudError: Some names are not UTF-8 on the disk.
    """
    odd = [printable(name) for name in names if printable(name) != name]
    if odd:
        raise TwinbudError(
            f"{len(odd)} file name{' is' if len(odd) == 1 else 's are'} not UTF-8",
            where=first_few(odd, 3),
            fix="Rename them",
        )


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all; see ``write_bytes``."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, contents: bytes) -> None:
    """Write to a draft beside ``path``, then rename it: ``path`` is the old file or the whole new one.

    Raises:
        TwinbudError: The disk is full or the folder may not be written.
    """
    draft = draft_path(path)
    with explained_writes(path):
        try:
            draft.write_bytes(contents)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, whole or not at all; raise ValueError for NaN."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the checksum of its content under ``sha256``."""
    text = json.dumps(content, sort_keys=True)
    return {"sha256": hashlib.sha256(text.encode()).hexdigest(), **content}


def read_sealed(path: Path, parse: Callable[[Any], Parsed]) -> Parsed:
    """Return what ``parse`` makes of a JSON object that was written as ``sealed``.

    Raises:
        OSError: See ``read_bytes``.
        ValueError: See ``read_json``, ``parse`` and ``require_unchanged``; a wrong value is named before the checksum.
    """
    content = read_json(path)
    parsed = parse(content)
    require_unchanged(content)
    return parsed


def require_unchanged(content: Mapping[str, Any]) -> None:
    """Refuse an object that has another content than when it was ``sealed``; earlier versions did not seal.

    Raises:
        ValueError: The content was changed.
    """
    if "sha256" in content and content != sealed({name: content[name] for name in content if name != "sha256"}):
        raise ValueError("the content was changed after it was written")


def draft_path(path: Path) -> Path:
    """Return where the new content of ``path`` is written first: in containers, all processes may have one number."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")


@contextmanager
def new_folder(path: Path, *, force: bool = False, optional: Collection[str] = ()) -> Iterator[Path]:
    """Yield a draft folder, which replaces ``path`` when the context ends without an error.

    Args:
        path: The final folder.
        force: Replace an existing folder, provided that the new one has every name that it holds.
        optional: Names that an existing folder may hold while the new one does not.

    Raises:
        TwinbudError: ``path`` exists and may not be replaced, the disk is full, or the place may not be written.
    """
    require_new_folder(path, force=force)
    draft = draft_path(path)
    with explained_writes(path):
        draft.mkdir(parents=True)
    try:
        yield draft
        require_free(path, force=force)  # what another process did meanwhile
        with explained_writes(path):
            if path.exists():
                _require_like(path, draft, optional)
                shutil.rmtree(path)
            draft.replace(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _require_like(old: Path, new: Path, optional: Collection[str]) -> None:
    written = {entry.name for entry in new.iterdir()} | {*optional}
    others = sorted({entry.name for entry in old.iterdir()} - written)
    if others:
        raise TwinbudError(
            f"the folder holds files that this command does not write ({first_few(others, 3)})",
            where=str(old),
            fix="Choose another --output",
        )


def require_new_file(path: Path, *, force: bool = False) -> None:
    """Refuse an output file that exists, or a place where it cannot be written.

    Raises:
        TwinbudError: The file exists and ``force`` is off, ``path`` is a folder, or its parent is missing or may not
            be written.
    """
    with explained_writes(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        draft = draft_path(path)
        try:
            draft.open("wb").close()
        finally:
            draft.unlink(missing_ok=True)
    if os.path.lexists(path) and not force:
        raise TwinbudError(
            "the file exists already", where=str(path), fix="Choose another --output, or replace it with --force"
        )


def require_new_folder(path: Path, *, force: bool = False) -> None:
    """Refuse an output folder that holds files, or that ``new_folder`` could not put another folder in the place of.

    Raises:
        TwinbudError: See ``require_free``; or ``path`` is the current folder or a mount point.
    """
    require_free(path, force=force)
    with explained_writes(path):
        is_current = path.exists() and path.samefile(os.curdir)
        if is_current or path.is_mount():
            kind = "current folder" if is_current else "mount point"
            problem = f"the folder is the {kind}, which cannot be replaced as a whole"
            raise TwinbudError(problem, where=str(path), fix="Give --output a folder inside it")


def require_free(path: Path, *, force: bool = False) -> None:
    """Refuse an output folder that holds files.

    Raises:
        TwinbudError: The folder is not empty and ``force`` is off; or ``path`` is a file.
    """
    with explained_writes(path):
        exists, is_folder = path.exists(), path.is_dir()  # in this order: the folder may be created meanwhile
        is_free = not exists or (is_folder and (force or not any(path.iterdir())))
    if is_free:
        return
    if is_folder:
        raise TwinbudError(
            "the folder is not empty",
            where=str(path),
            fix="Choose another --output, or replace it with --force",
        )
    raise TwinbudError(
        "a file stands where the output folder should be", where=str(path), fix="Choose another --output"
    )
