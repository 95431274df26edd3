"""Read a folder of images: class folders, or split folders of class folders.

Every file that is not used (hidden, of another type, outside the class folders) is listed with its reason. Links are
followed: two links to one file are two images with identical pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from twinbud.core.errors import TwinbudError, first_few
from twinbud.core.files import printable, require_unicode
from twinbud.data.formats.decoding import surveyor_of
from twinbud.data.identity import same_path_key, sort_classes
from twinbud.data.index import REARRANGE, SPLIT_WORDS, IgnoredFile, ImageIndex, ImageRef, ImageRow, SplitName

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
"""Suffixes of the files that are taken from a folder unopened; case does not count."""

_SYSTEM_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir"})
_LOOSE = "not in a class folder"


def read_folder(root: Path) -> ImageIndex:
    """Read ``FOLDER/CLASS/…``, or ``FOLDER/SPLIT/CLASS/…`` if all folders at the top are named like splits.

    A class has exactly the name of its folder.

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
    for file in walk(root):
        relative = file.relative_to(root)
        folder = root.joinpath(*relative.parts[:depth])
        reason = why_ignored(file, relative) or (_LOOSE if len(relative.parts) <= depth else None)
        if reason:
            ignored.append(IgnoredFile(path=printable(relative.as_posix()), reason=reason))
        else:
            split = class_folders[folder]
            rows.append(ImageRow(path=relative.as_posix(), image=ImageRef(file), label=folder.name, split=split))
    _check_folder(root, list(class_folders), rows, ignored)
    classes = sort_classes(row.label for row in rows)
    return ImageIndex(source=str(root), rows=tuple(rows), classes=classes, ignored=tuple(ignored))


def is_flat(root: Path) -> bool:
    """Return whether a folder holds no folder but hidden ones, so that its images cannot have classes."""
    return not _visible_folders(root)


def read_flat_folder(root: Path) -> ImageIndex:
    """Read ``FOLDER/image.png``: images without labels.

    Raises:
        TwinbudError: No file is an image.
    """
    files, ignored = find_images([root])
    rows = (ImageRow(path=file.relative_to(root).as_posix(), image=ImageRef(file), label="") for file in files)
    return ImageIndex(source=str(root), rows=tuple(rows), classes=(), ignored=ignored, to_train=False)


def _split_folders(root: Path) -> dict[Path, SplitName]:
    """Return the folders at the top with their splits; empty where they are classes."""
    folders = _visible_folders(root)
    splits: dict[Path, SplitName] = {
        folder: SPLIT_WORDS[folder.name.lower()] for folder in folders if folder.name.lower() in SPLIT_WORDS
    }
    others = [f"'{folder.name}'" for folder in folders if folder not in splits]
    if splits and others:
        named = first_few(f"'{folder.name}'" for folder in splits)
        raise TwinbudError(
            f"split folders ({named}) are mixed with other folders ({first_few(others)})",
            where=str(root),
            fix="Move the other folders elsewhere, or rename class folders that are named like a split",
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
        problem = f"{loose} images are in no class folder" if loose else f"none of {len(ignored)} files is an image"
        raise TwinbudError(problem if ignored else "the folder is empty", where=str(root), fix=REARRANGE)
    parents = {parent for row in rows for parent in row.image.file.parents}
    direct = {row.image.file.parent for row in rows}
    empty = [f"'{folder.relative_to(root).as_posix()}'" for folder in folders if folder not in parents]
    if empty:
        problem = f"class folders without images: {first_few(empty)}"
        raise TwinbudError(problem, where=str(root), fix=f"{REARRANGE}; remove folders that are not a class")
    deep = [f"'{folder.relative_to(root).as_posix()}'" for folder in folders if folder not in direct]
    if deep:
        problem = f"class folders that hold folders instead of images: {first_few(deep)}"
        raise TwinbudError(problem, where=str(root), fix=REARRANGE)


def find_images(paths: Sequence[Path]) -> tuple[tuple[Path, ...], tuple[IgnoredFile, ...]]:
    """List images to predict: files as given, and everything below folders.

    Links and copies are images of their own. A path that is given twice is used once, and the repetition is listed.

    Returns:
        The images, in the order given and by path within a folder; and the files of the folders that are not used.

    Raises:
        TwinbudError: A missing path, no image at all, or a file name that is not UTF-8.
    """
    found: dict[tuple[str, str], Path] = {}
    ignored: list[IgnoredFile] = []
    for path in paths:
        if not path.exists():
            fix = "Give images, or folders that hold images"
            raise TwinbudError("there is no such file or folder", where=str(path), fix=fix)
        for file in walk(path) if path.is_dir() else [path]:
            reason = why_ignored(file, file.relative_to(path)) if path.is_dir() else None
            if reason is None:
                first = found.setdefault(same_path_key(file), file)
                reason = None if first is file else f"given already as {first}"
            if reason:
                ignored.append(IgnoredFile(path=printable(str(file)), reason=reason))
    if not found:
        problem = f"none of {len(ignored)} files is an image" if ignored else "the folder is empty"
        raise TwinbudError(problem, where=first_few(paths), fix=f"Give images ({_suffixes()}), or folders of images")
    require_unicode(map(str, found.values()))
    return tuple(found.values()), tuple(ignored)


def why_ignored(file: Path, relative: Path) -> str | None:
    """Return why a file below a folder is not used, or None if it is an image to use."""
    if any(part.startswith(".") or part.lower() in _SYSTEM_NAMES for part in relative.parts):
        return "hidden or made by the system"
    if file.is_dir():
        return "a link to a folder that contains it"
    if relative.suffix.lower() not in IMAGE_SUFFIXES and surveyor_of(file) is None:
        return f"not an image by its suffix ({_suffixes()}) or content"
    return None


def _suffixes() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))


def walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield all files below a folder, by name. Links are followed; one to a folder that contains it is yielded."""
    here = (*above, folder.resolve())
    for entry in _entries(folder):
        if not entry.is_dir() or entry.resolve() in here:
            yield entry
        else:
            yield from walk(entry, here)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        problem = f"the folder cannot be read ({(error.strerror or 'no permission').lower()})"
        raise TwinbudError(problem, where=str(folder), fix="Check its permissions") from error
