"""Write a set that is not a folder of image files as one into the cache, once: lossless, whole or not at all.

``index.csv`` in the folder lists the images. It is itself a CSV that ``--data`` takes.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from twinbud.core.cache import (
    CACHE_VARIABLE,
    cache_folder,
    delete_abandoned,
    reason_of,
    temporary_folder,
    warn_of_cache,
)
from twinbud.core.csv_files import read_cells, write_csv
from twinbud.core.errors import TwinbudError, explained_writes
from twinbud.core.progress import Progress
from twinbud.data.csv_source import split_word
from twinbud.data.index import ImageRef, ImageRow, SplitName

INDEX_FILE = "index.csv"
_COLUMNS = ("image_path", "label", "patient_id", "split")
_CHUNK = 256
"""Images in memory at once."""


@dataclass(frozen=True, kw_only=True)
class NewImage:
    """An image to write.

    Attributes:
        path: Of its file, relative to the folder, with ``/``.
        encode: Returns the contents of the file; called on another thread.
        label: Name of its class.
        patient_id: None where it is not known.
        split: The part that the set gives it, if any.
    """

    path: str
    encode: Callable[[], bytes]
    label: str
    patient_id: str | None = None
    split: SplitName | None = None


def image_folder(name: str) -> Path:
    """Return where the cache keeps a set; the folder need not exist."""
    return cache_folder() / "datasets" / re.sub(r"[^\w.@+-]", "-", name)


def write_once(
    name: str, images: Callable[[], Iterable[NewImage]], *, num_images: int, progress: Progress, label: str
) -> Path:
    """Return the folder of a set in the cache, written now unless it is complete.

    Where the cache cannot be written, it is a folder that ends with this process.

    Args:
        name: Tells one set, version and size from all others.
        images: Yields the images; not called if the folder is complete.
        num_images: How many these are.
        progress: Shows how many are written.
        label: Name of the set in messages.

    Raises:
        TwinbudError: The disk is full, or what ``images`` raises.
    """
    folder = image_folder(name)
    if is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(folder.parent, os.W_OK):
            raise PermissionError("the folder is not writable")
    except OSError as error:
        warn_of_cache(f"{label} is not kept in {folder.parent} ({reason_of(error)})")
        folder = temporary_folder() / "datasets" / folder.name
        if is_complete(folder):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
    progress.note(f"{label}: writing {num_images:,} images to {folder}, once")
    with explained_writes(folder, CACHE_VARIABLE):
        delete_abandoned(folder.parent, f".{folder.name}-*")
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            with progress.bar("writing images", num_images) as advance:
                _write(aside / "new", images(), advance)
            _put_in_place(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder


def is_complete(folder: Path) -> bool:
    """Return whether a folder holds its list, and as many images as that names."""
    try:
        listed = sum(1 for _ in read_cells(folder / INDEX_FILE, _COLUMNS))
        return listed == sum(len(files) for _, _, files in os.walk(folder)) - 1
    except TwinbudError:
        return False


def read_rows(folder: Path) -> tuple[ImageRow, ...]:
    """Return a row for each image of a folder that ``write_once`` has written.

    Raises:
        TwinbudError: The list is missing or damaged.
    """
    table = folder / INDEX_FILE
    return tuple(
        ImageRow(
            path=cells["image_path"],
            image=ImageRef(folder / cells["image_path"]),
            label=cells["label"],
            patient_id=cells["patient_id"] or None,
            split=split_word(cells["split"], f"{table}, row {number}"),
        )
        for number, cells in read_cells(table, _COLUMNS, rename="Delete the folder", exact=_COLUMNS)
    )


def _write(folder: Path, images: Iterable[NewImage], advance: Callable[[int], None]) -> None:
    folder.mkdir()
    table: list[tuple[str | None, ...]] = [_COLUMNS]

    def write_one(image: NewImage) -> None:
        (folder / image.path).write_bytes(image.encode())

    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="encode") as pool:
        for chunk in _chunks(images):
            for parent in {(folder / image.path).parent for image in chunk}:
                parent.mkdir(parents=True, exist_ok=True)
            for _ in pool.map(write_one, chunk):
                pass
            table += [(image.path, image.label, image.patient_id, image.split) for image in chunk]
            advance(len(table) - 1)
    write_csv(folder / INDEX_FILE, table)


def _put_in_place(aside: Path, folder: Path) -> None:
    """Rename ``aside/new`` to ``folder``, unless another process was faster: it reads its images already."""
    if is_complete(folder):
        return
    with suppress(FileNotFoundError):
        folder.rename(aside / "old")
    try:
        (aside / "new").rename(folder)
    except OSError:
        if not is_complete(folder):
            raise


Item = TypeVar("Item")


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, _CHUNK)):
        yield chunk
