"""Files as a stream of chunks, for machines that share no file system."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from filelock import FileLock

from twinbud.core.cache import CACHE_VARIABLE
from twinbud.core.errors import explained_writes
from twinbud.core.files import new_folder

CHUNK_BYTES = 32 * 2**20
"""Largest chunk, and so the memory that packing and unpacking take."""


def pack(base: Path, files: Iterable[Path], send: Callable[[bytes], None]) -> str:
    """Pass files to ``send`` as chunks of a tar archive. Links are followed; times and owners are left out.

    Args:
        base: A folder that all files are in; names in the archive are relative to it.
        files: The files.
        send: Receives each chunk, at most ``CHUNK_BYTES`` long.

    Returns:
        The SHA-256 of the archive; equal names and contents have equal ones.

    Raises:
        OSError: A file cannot be read.
    """
    sink = _Sink(send)
    with tarfile.open(mode="w|", fileobj=sink, bufsize=CHUNK_BYTES, dereference=True) as archive:  # type: ignore[call-overload]
        for file in files:
            entry = tarfile.TarInfo(file.relative_to(base).as_posix())
            with file.open("rb") as content:
                entry.size = file.stat().st_size
                archive.addfile(entry, content)
    return sink.checksum.hexdigest()


class _Sink:
    def __init__(self, send: Callable[[bytes], None]) -> None:
        self.send, self.checksum = send, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.checksum.update(data)
        self.send(bytes(data))
        return len(data)


def unpack(chunks: Iterable[bytes], folder: Path) -> None:
    """Write the files of ``pack`` below an existing folder.

    Raises:
        OSError: The folder cannot be written, or the disk is full.
        tarfile.TarError: The chunks are incomplete, or a name leads out of the folder.
    """
    with tarfile.open(mode="r|", fileobj=_Source(iter(chunks))) as archive:  # type: ignore[call-overload]
        archive.extractall(folder, filter="data")


class _Source:
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks, self.rest = chunks, memoryview(b"")

    def read(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            if not self.rest:
                self.rest = memoryview(next(self.chunks, b""))
                if not self.rest:
                    break
            part = self.rest[: size - len(parts)]
            parts += part
            self.rest = self.rest[len(part) :]
        return bytes(parts)


def unpack_once(digest: str, chunks: Iterable[bytes], folder: Path) -> Path:
    """Unpack an archive into a folder of this machine, unless another process has done so.

    Args:
        digest: The archive's SHA-256.
        chunks: The archive; read only if it has to be unpacked.
        folder: The folder of all archives, below the cache folder; created if missing, for its owner only.

    Returns:
        The folder with the files.

    Raises:
        TwinbudError: The disk is full, or the folder cannot be written.
    """
    target = folder / digest
    with explained_writes(folder, CACHE_VARIABLE):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(folder / f"{digest}.lock"):
            if not target.is_dir():
                with new_folder(target) as draft:
                    unpack(chunks, draft)
    return target
