"""Files that are too large to be read whole: mapped into memory, with the pages that were read given back at once."""

from __future__ import annotations

import hashlib
import io
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from twinbud.core.files import open_regular

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

Contents = bytes | mmap.mmap
"""The bytes of a file, or the mapped file."""
_STEP = 2**24


def map_path(path: Path) -> mmap.mmap:
    """Map a regular file that is not empty; it stays mapped as long as the result or an array of it lives.

    Raises:
        OSError: No such file, or one of another kind.
    """
    with open_regular(path) as file:
        return map_file(file)


def map_file(file: BinaryIO) -> mmap.mmap:
    """Map an open file, which may be closed afterwards."""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def release(mapped: mmap.mmap) -> None:
    """Give back the memory of all pages that were read; they are read from the file again when they are needed."""
    if hasattr(mmap, "MADV_DONTNEED"):  # elsewhere the system does so when memory is short
        mapped.madvise(mmap.MADV_DONTNEED)


def sha256(contents: Contents) -> bytes:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    if isinstance(contents, bytes):
        digest.update(contents)
        return digest.digest()
    for start in range(0, len(contents), _STEP):
        digest.update(contents[start : start + _STEP])
        release(contents)
    return digest.digest()


def stream_of(contents: Contents) -> BinaryIO:
    """Return a stream that reads the bytes of a file from its start."""
    if isinstance(contents, bytes):
        return io.BytesIO(contents)
    return io.BufferedReader(_MappedStream(contents), 2**20)


class _MappedStream(io.RawIOBase):
    """Reads a mapped file from its start, and gives back what was read."""

    def __init__(self, mapped: mmap.mmap) -> None:
        super().__init__()
        self._mapped, self._place = mapped, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill a buffer with the next bytes; return how many there are."""
        target = memoryview(buffer)
        data = self._mapped[self._place : self._place + len(target)]
        target[: len(data)] = data
        self._place += len(data)
        release(self._mapped)
        return len(data)


def copied(image: np.ndarray, mapped: mmap.mmap) -> np.ndarray:
    """Return a copy of a view of a mapped file, made in parts that lie near each other in the file.

    Args:
        image: (H, W) or (H, W, 3), a view with any strides.
        mapped: The file.
    """
    copy = np.empty(image.shape, image.dtype)
    axis = int(np.argmax(np.abs(image.strides[:2])))
    for part in _parts(image.shape[axis], abs(image.strides[axis])):
        place = (part, slice(None)) if axis == 0 else (slice(None), part)
        copy[place] = image[place]
        release(mapped)
    return copy


def _parts(size: int, stride: int) -> Iterator[slice]:
    step = max(1, _STEP // max(1, stride))
    return (slice(start, start + step) for start in range(0, size, step))
