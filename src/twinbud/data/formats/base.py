"""The interface that each file format implements, and the errors of image files.

A reader works on the bytes of a file. It finds out from the content, never from the name, whether the file is its own
(``probe``), reads the header (``describe``), and decodes one frame (``read``). ``formats.decoding`` lists the readers
and does what is common to all: it opens the file, compares the header with the limits and checks the frame number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from twinbud.core.errors import TwinbudError

SKIP = "give --skip-broken to leave it out and list it"


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """Header of an image file; no pixel is decoded to read it.

    Attributes:
        width: Width of a frame in pixels.
        height: Height of a frame in pixels.
        num_frames: Number of frames (pages, slices, time points) in the file.
        frames: What the frames are, for error messages, such as "30 frames (3 channels, 10 slices)".
    """

    width: int
    height: int
    num_frames: int = 1
    frames: str | None = None


class ImageReader(Protocol):
    """Reads the files of one format. Readers hold no state: several threads call them at once.

    Attributes:
        formats: Names of the formats, for messages.
        damage: The types that the decoder raises for a damaged file.
    """

    formats: ClassVar[tuple[str, ...]]
    damage: ClassVar[tuple[type[Exception], ...]]

    def probe(self, contents: bytes) -> bool:
        """Return whether the file has this format, judged by its content."""
        ...

    def describe(self, contents: bytes) -> ImageInfo:
        """Read the header.

        Raises:
            UnreadableImage: The header is damaged, or the samples have a layout that ``read`` does not support.
        """
        ...

    def read(self, contents: bytes, *, frame: int, window: str | None) -> np.ndarray:
        """Decode one frame.

        Args:
            contents: Bytes of the file.
            frame: Index of the frame, counted from 0 and less than ``num_frames``.
            window: Name of the intensity window; None for the default of the format.

        Returns:
            (H, W, 3) uint8 RGB, contiguous, by the rules of ``formats.intensity``.

        Raises:
            UnreadableImage: The frame cannot be decoded. The types of ``damage`` count as a damaged file.
        """
        ...


class UnreadableImage(Exception):  # noqa: N818 - becomes a BrokenImageError as soon as the file's name is known
    """A reader cannot decode a file.

    Args:
        problem: What is wrong, as a clause with a verb ("is empty (0 bytes)", "holds 12-bit JPEG samples").
        fix: What to do, as an imperative sentence without its full stop; None for the usual advice.
    """

    def __init__(self, problem: str, fix: str | None = None) -> None:
        self.problem, self.fix = problem, fix
        super().__init__(problem)


class BrokenImageError(TwinbudError):
    """An image file cannot be used; ``--skip-broken`` leaves it out.

    Args:
        problem: What is wrong, as a clause ("the file is empty").
        name: Name of the file in messages; None if there are several.
        fix: What to do next.
    """

    def __init__(self, problem: str, *, name: str | None = None, fix: str | None = None) -> None:
        self.name = name
        super().__init__(problem, where=name, fix=fix or f"Repair or remove the file, or {SKIP}")
