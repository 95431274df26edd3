"""Decoded images on the disk, named by the bytes of the file they came from: no image is decoded twice.

An entry is one small file that appears whole, behind its own checksum. Several processes may share the folder: two
that save the same image write the same bytes, and a damaged entry is as good as none. Entries hold pixels of patients,
so that only the user who made them may read them.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch

from twinbud.core.files import read_bytes

DECODING_VERSION = 1
"""To be raised when decode.py gives other pixels for the same file."""
_CHECKSUM_BYTES = 32
_HEADER = struct.Struct("<32sQ")
"""SHA-256 of the pixels at full resolution, and their number."""


@dataclass(frozen=True, kw_only=True)
class SmallImage:
    """One image, decoded and resized.

    Attributes:
        entry: SHA-256, in hexadecimal, of its file; it names the image in the cache.
        channels: uint8 (1, S, S), or (3, S, S) where its channels differ.
        digest: SHA-256, in hexadecimal, of its decoded pixels at full resolution.
        num_pixels: Of those, the number.
    """

    entry: str
    channels: torch.Tensor
    digest: str
    num_pixels: int


class PixelCache:
    """The entries of one image size.

    Args:
        folder: Made when the first entry is saved.
        image_size: S, in pixels.
    """

    def __init__(self, folder: Path, image_size: int) -> None:
        self.folder = folder / f"v{DECODING_VERSION}-pillow{PIL.__version__}-{image_size}"
        self.image_size = image_size
        self.trouble: str | None = None
        """Why nothing can be saved, once that has happened."""

    def load(self, entry: str) -> SmallImage | None:
        """The image of that name, or None where there is none that is whole."""
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
        """Keep an image; where that is impossible, ``trouble`` says why and nothing is tried again."""
        if self.trouble is not None:
            return
        content = _HEADER.pack(bytes.fromhex(image.digest), image.num_pixels) + image.channels.numpy().tobytes()
        path = self._path(image.entry)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor, draft = tempfile.mkstemp(dir=path.parent)  # for its owner alone
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(hashlib.sha256(content).digest() + content)
                Path(draft).replace(path)
            except OSError:
                with suppress(OSError):
                    Path(draft).unlink()
                raise
        except OSError as error:
            self.trouble = f"decoded images cannot be kept in {self.folder} ({error.strerror})"

    def _path(self, entry: str) -> Path:
        return self.folder / entry[:2] / entry[2:]
