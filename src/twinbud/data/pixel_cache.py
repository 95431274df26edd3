"""A cache of decoded images on disk: no image is decoded twice.

The key of an entry holds everything that its pixels depend on: the bytes of the file, frame, window and plane, the
version of this package's decoding and of the decoding libraries, the image size and the resize rule.

An entry is one small file with a checksum, moved into place when complete. Several processes may share the folder: two
that save the same image write the same bytes, and a damaged entry counts as missing. What a killed process has not
completed is deleted a day later, when an entry is saved beside it. Entries hold pixels of patients, so only the user
who made them may read them.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL
import torch

from twinbud.config.reading import Plane
from twinbud.core.cache import CACHE_VARIABLE, delete_abandoned
from twinbud.core.files import read_bytes
from twinbud.data.index import ImageRef
from twinbud.data.preprocessing import RESIZE_RULE

DECODING_VERSION = 3
"""Raise it when ``data.formats`` gives other pixels for the same file."""
_CHECKSUM_BYTES = 32
_HEADER = struct.Struct("<32sQ")
"""SHA-256 of the pixels at full resolution, and their number."""
_DRAFT = "tmp"
"""How the name of an entry that is being written begins; those of entries are hexadecimal."""


def entry_name(contents_digest: bytes, image: ImageRef) -> str:
    """Return the name of an image's entry: the SHA-256, in hexadecimal, of its file, frame, window and plane.

    Args:
        contents_digest: The SHA-256 of the bytes of its file.
        image: Its other properties.
    """
    usual = image.plane == Plane()
    parts = image.frame, image.window, *(() if usual else (image.plane.axis, image.plane.volume))
    return hashlib.sha256(contents_digest + repr(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class SmallImage:
    """One image, decoded and resized.

    Attributes:
        entry: Name of its cache entry; see ``entry_name``.
        channels: uint8 (1, S, S), or (3, S, S) if its channels differ.
        digest: SHA-256, in hexadecimal, of its decoded pixels at full resolution.
        num_pixels: Number of its pixels at full resolution.
    """

    entry: str
    channels: torch.Tensor
    digest: str
    num_pixels: int

    @property
    def is_uniform(self) -> bool:
        """Whether all its pixels have the same color."""
        return torch.equal(self.channels.amin((1, 2)), self.channels.amax((1, 2)))


class PixelCache:
    """The entries of one image size.

    Args:
        folder: Folder of the cache, made when the first entry is saved.
        image_size: S, in pixels.
    """

    def __init__(self, folder: Path, image_size: int) -> None:
        others = (f"{name}{version(name)}" for name in ("tifffile", "imagecodecs"))
        libraries = "-".join((f"pillow{PIL.__version__}", *others))
        self.folder = folder / f"v{DECODING_VERSION}-{libraries}-{image_size}-{RESIZE_RULE}"
        self.image_size = image_size
        self._tidy = set[Path]()
        self.trouble: str | None = None
        """Why entries cannot be saved; None until saving fails."""

    def load(self, entry: str) -> SmallImage | None:
        """Return an image, or None if its entry is missing or damaged."""
        one_channel = self.image_size**2
        try:
            data = read_bytes(self._path(entry), _CHECKSUM_BYTES + _HEADER.size + 3 * one_channel)
        except OSError:
            return None
        num_channels, rest = divmod(len(data) - _CHECKSUM_BYTES - _HEADER.size, one_channel)
        checksum, content = data[:_CHECKSUM_BYTES], data[_CHECKSUM_BYTES:]
        if num_channels not in (1, 3) or rest or hashlib.sha256(content).digest() != checksum:
            return None
        digest, num_pixels = _HEADER.unpack_from(content)
        pixels = np.frombuffer(content, np.uint8, offset=_HEADER.size).copy()
        return SmallImage(
            entry=entry,
            channels=torch.from_numpy(pixels.reshape(num_channels, self.image_size, self.image_size)),
            digest=digest.hex(),
            num_pixels=num_pixels,
        )

    def save(self, image: SmallImage) -> None:
        """Save an image; after a failure, ``trouble`` gives the reason and nothing is saved any more."""
        if self.trouble is not None:
            return
        content = _HEADER.pack(bytes.fromhex(image.digest), image.num_pixels) + image.channels.numpy().tobytes()
        path = self._path(image.entry)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if path.parent not in self._tidy:
                self._tidy.add(path.parent)
                delete_abandoned(path.parent, f"{_DRAFT}*")
            descriptor, draft = tempfile.mkstemp(prefix=_DRAFT, dir=path.parent)  # readable by its owner only
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(hashlib.sha256(content).digest() + content)
                Path(draft).replace(path)
            except OSError:
                with suppress(OSError):
                    Path(draft).unlink()
                raise
        except OSError as error:
            self.trouble = (
                f"cache: decoded images cannot be saved in {self.folder} ({error.strerror}); "
                f"set {CACHE_VARIABLE} to a folder that can be written"
            )

    def _path(self, entry: str) -> Path:
        return self.folder / entry[:2] / entry[2:]
