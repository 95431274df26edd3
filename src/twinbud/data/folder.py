"""A folder becomes rows: class folders, or split folders of class folders.

Hidden files, files that are no images and images outside the class folders are listed, each with its reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from twinbud.core.errors import TwinbudError, first_few
from twinbud.core.files import printable, require_unicode
from twinbud.data.index import REARRANGE, SPLIT_WORDS, IgnoredFile, ImageIndex, ImageRef, ImageRow, SplitName

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
"""Endings, in any case, of the files that are taken from a folder."""

_SYSTEM_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir"})
_LOOSE = "not in a class folder"


def read_folder(root: Path) -> ImageIndex:
    """Read `FOLDER/<class>/…`, or `FOLDER/<split>/<class>/…` if all folders at the top are named like splits.

    Raises:
        TwinbudError: Neither of the two layouts, or a class folder without images.
    """
    splits = _split_folders(root)
    class_folders: dict[Path, SplitName | None] = dict.fromkeys([] if splits else _visible_folders(root))
    for folder, split in splits.items():
        class_folders |= dict.fromkeys(_visible_folders(folder), split)
    depth = 2 if splits else 1
    rows: list[ImageRow] = []
    ignored: list[IgnoredFile] = []
    for file in _walk(root):
        relative = file.relative_to(root)
        folder = root.joinpath(*relative.parts[:depth])
        reason = why_ignored(relative) or (_LOOSE if len(relative.parts) <= depth else None)
        if reason:
            ignored.append(IgnoredFile(path=printable(relative.as_posix()), reason=reason))
        else:
            split = class_folders[folder]
            rows.append(ImageRow(path=relative.as_posix(), image=ImageRef(file), label=folder.name, split=split))
    _check_folder(root, list(class_folders), rows, ignored)
    classes = tuple(sorted({row.label for row in rows}))
    return ImageIndex(source=str(root), rows=tuple(rows), classes=classes, ignored=tuple(ignored))


def _split_folders(root: Path) -> dict[Path, SplitName]:
    """The folders at the top with their splits, or none where they are classes."""
    folders = _visible_folders(root)
    splits: dict[Path, SplitName] = {
        folder: SPLIT_WORDS[folder.name.lower()] for folder in folders if folder.name.lower() in SPLIT_WORDS
    }
    others = [f"'{folder.name}'" for folder in folders if folder not in splits]
    if splits and others:
        named = first_few(f"'{folder.name}'" for folder in splits)
        raise TwinbudError(
            "folders that are all splits or all classes",
            got=f"{named} (named like a split) beside {first_few(others)}",
            where=str(root),
            fix="Move what is no split elsewhere, or rename the class folders",
        )
    return splits


def _visible_folders(folder: Path) -> list[Path]:
    return [
        entry
        for entry in _entries(folder)
        if entry.is_dir() and not entry.name.startswith(".") and entry.name.lower() not in _SYSTEM_NAMES
    ]


def _check_folder(root: Path, folders: list[Path], rows: list[ImageRow], ignored: list[IgnoredFile]) -> None:
    """Raise TwinbudError unless there are class folders, and each holds images directly."""
    if not folders:
        loose = sum(file.reason == _LOOSE for file in ignored)
        got = f"{loose} images in no class folder" if loose else f"no image among {len(ignored)} files"
        got = got if ignored else "an empty folder"
        raise TwinbudError("a folder of class folders", got=got, where=str(root), fix=REARRANGE)
    parents = {parent for row in rows for parent in row.image.file.parents}
    direct = {row.image.file.parent for row in rows}
    empty = [f"'{folder.relative_to(root).as_posix()}'" for folder in folders if folder not in parents]
    if empty:
        got = f"none in {first_few(empty)}"
        fix = f"{REARRANGE}; remove folders that are no class"
        raise TwinbudError("images in each class folder", got=got, where=str(root), fix=fix)
    deep = [f"'{folder.relative_to(root).as_posix()}'" for folder in folders if folder not in direct]
    if deep:
        got = f"only folders in {first_few(deep)}"
        raise TwinbudError("images directly in each class folder", got=got, where=str(root), fix=REARRANGE)


def find_images(paths: Sequence[Path]) -> tuple[tuple[Path, ...], tuple[IgnoredFile, ...]]:
    """List images to predict: files as they are given, folders with all that lies below them, each file once.

    Returns:
        The images, in the order given and by path within a folder; and what was left out of the folders.

    Raises:
        TwinbudError: A missing path, no image at all, or one whose name is not UTF-8.
    """
    found: dict[str, Path] = {}
    ignored: list[IgnoredFile] = []
    for path in paths:
        if not path.exists():
            raise TwinbudError("an image or a folder", got="a path where there is nothing", where=str(path))
        for file in _walk(path) if path.is_dir() else [path]:
            reason = why_ignored(file.relative_to(path)) if path.is_dir() else None
            if reason:
                ignored.append(IgnoredFile(path=printable(str(file)), reason=reason))
            else:
                found.setdefault(os.path.realpath(file), file)
    if not found:
        got = f"none among {len(ignored)} files" if ignored else "an empty folder"
        raise TwinbudError(f"images ({_endings()})", got=got, where=first_few(paths), fix="Give other paths")
    require_unicode(map(str, found.values()))
    return tuple(found.values()), tuple(ignored)


def why_ignored(relative: Path) -> str | None:
    """Why a file below a folder is not an image to be used, or None if it is one."""
    if any(part.startswith(".") or part.lower() in _SYSTEM_NAMES for part in relative.parts):
        return "hidden or made by the system"
    if relative.suffix.lower() not in IMAGE_SUFFIXES:
        return f"no image by its ending ({_endings()})"
    return None


def _endings() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))


def _walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files below a folder, by name; links are followed, but not back to a folder they lie in."""
    here = folder.resolve()
    if here in above:
        return
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _walk(entry, (*above, here))
        else:
            yield entry


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise TwinbudError("a folder that may be read", got=str(error.strerror), where=str(folder)) from error
