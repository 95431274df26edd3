"""Find or download a set of Kaggle, and the folder in a copy that has the set's layout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from twinbud.core.errors import TwinbudError, first_few, first_line, images_place
from twinbud.core.extras import import_extra
from twinbud.core.progress import Progress
from twinbud.data.datasets.registry import DatasetEntry, KaggleSource

CACHE_VARIABLE = "KAGGLEHUB_CACHE"
"""Where kagglehub keeps downloads; ``~/.cache/kagglehub`` if it is not set."""


def find_copy(entry: DatasetEntry, source: KaggleSource, root: Path | None) -> Path | None:
    """Return the folder of the set in a copy that is here already, or None.

    Args:
        entry: The set.
        source: Its place on Kaggle.
        root: Where the user has a copy; None: where kagglehub has downloaded it to.

    Raises:
        TwinbudError: ``root`` or the download has another layout.
    """
    if root is None:
        downloaded = downloaded_folder(source.handle)
        return None if downloaded is None else set_folder(entry, source, downloaded)
    return set_folder(entry, source, root)


def open_copy(entry: DatasetEntry, source: KaggleSource, root: Path | None, progress: Progress) -> Path:
    """Return the folder of the set in a copy, downloaded now if there is none.

    Raises:
        TwinbudError: The copy has another layout, kagglehub is not installed, or the set cannot be downloaded.
    """
    found = find_copy(entry, source, root)
    return found or set_folder(entry, source, _download(entry, source, progress))


def downloaded_folder(handle: str) -> Path | None:
    """Return the folder of a complete download of kagglehub, the newest one of a handle without a version."""
    folder, _, number = handle.partition("/versions/")
    try:
        base = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "kagglehub") / "datasets" / folder
        numbers = [number] if number else [marker.stem for marker in base.glob("*.complete")]
        complete = [version for version in numbers if (base / f"{version}.complete").exists()]
    except (OSError, RuntimeError):  # not readable, or no home directory
        return None
    found = [base / "versions" / version for version in sorted(complete, key=lambda name: (len(name), name))]
    return next((path for path in reversed(found) if path.is_dir()), None)


def _download(entry: DatasetEntry, source: KaggleSource, progress: Progress) -> Path:
    where = images_place(entry.name)
    by_hand = f"download it from {entry.origin} and give --data-root FOLDER"
    kagglehub = import_extra("kagglehub", entry.extra, where=where, otherwise=by_hand)
    progress.note(f"{entry.name}: downloading {source.handle} from Kaggle")
    try:
        return Path(kagglehub.dataset_download(source.handle))
    except Exception as error:  # of kagglehub, of requests, or of the file system
        raise TwinbudError(
            f"the set cannot be downloaded ({first_line(error)})",
            where=where,
            fix=f"Check the network and the Kaggle credentials; or {by_hand}",
        ) from error


def set_folder(entry: DatasetEntry, source: KaggleSource, root: Path) -> Path:
    """Return the folder of the set within a copy: ``root``, ``root/NAME``, or what a download has inside.

    Raises:
        TwinbudError: No folder has all class folders of the set; the text says what was looked for and found.
    """
    where = images_place(f"{entry.name} --data-root {root}")
    if not root.is_dir():
        problem = "the path is a file, not a folder" if root.exists() else "there is no such folder"
        raise TwinbudError(problem, where=where, fix=f"Give the folder of a copy of {entry.origin}")
    candidates = list(dict.fromkeys(base / inner for base in (root, root / entry.name) for inner in source.inner))
    lacking = {folder: _absent(folder, list(source.folders)) for folder in candidates}
    best = min(candidates, key=lambda folder: len(lacking[folder]))
    if not lacking[best]:
        return best
    problem = f"looked for the folders {first_few(source.folders, 8)}"
    if len(lacking[best]) < len(source.folders):
        problem += f"; {best} lacks {first_few(lacking[best])}"
    else:
        problem += f" in it and in {first_few(_names(candidates, root))}; found {first_few(_entries(root))}"
    raise TwinbudError(problem, where=where, fix=f"Give the folder of a copy of {entry.origin}")


def _absent(folder: Path, names: Sequence[str]) -> list[str]:
    return [name for name in names if not (folder / name).is_dir()]


def _names(candidates: Sequence[Path], root: Path) -> list[str]:
    return [folder.relative_to(root).as_posix() for folder in candidates if folder != root]


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(f"'{entry.name}'" for entry in folder.iterdir()) or ["nothing"]
    except OSError as error:
        return [f"nothing that can be read ({error.strerror})"]
