"""The interface that each file format implements, and the errors of image files.

A reader works on the bytes of a file. It finds out from the content, never from the name, whether the file is its own
(``probe``), reads the header (``describe``), and decodes one frame (``read``). ``formats.decoding`` lists the readers
and does what is common to all: it opens the file, compares the header with the limits and checks the frame number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, ClassVar, Literal, Protocol

import numpy as np

from twinbud.config.reading import Plane
from twinbud.core.errors import TwinbudError

SKIP, SKIP_ALL = (f"give --skip-broken to leave {it} out and list {it}" for it in ("it", "them"))
"""Further advice for images of a set."""
REPAIR = "Repair or remove the file"
NO_UNITS = "Give CT images in Hounsfield units, or train without --window, which takes this one, too"
"""Advice where a window is asked for, and the values of an image have no unit."""
OTHER_WINDOW = "Give images with values in this window, or train with another --window"
"""Advice where a window leaves an image constant."""


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """Header of an image file; no pixel is decoded to read it.

    Attributes:
        width: Width of a frame in pixels.
        height: Height of a frame in pixels.
        num_frames: Number of frames (pages, slices, time points) in the file.
        frames: What the frames are, for error messages, such as "30 frames (3 channels, 10 slices)".
        has_named_frames: Whether each of the frames can be read on its own, by its number.
    """

    width: int
    height: int
    num_frames: int = 1
    frames: str | None = None
    has_named_frames: bool = False


class ImageReader(Protocol):
    """Reads the files of one format.

    Several threads may call a reader at once, so it holds no state; only what ``for_file`` returns may.

    Attributes:
        formats: Names of the formats, for messages.
        damage: The types that the decoder raises for a damaged file.
    """

    formats: ClassVar[tuple[str, ...]]
    damage: ClassVar[tuple[type[Exception], ...]]

    def probe(self, contents: bytes) -> bool:
        """Return whether the file has this format, judged by its content."""
        ...

    def for_file(self, plane: Plane) -> ImageReader:
        """Return a reader for the frames of one file, in one thread: it may keep what they share.

        Args:
            plane: Which slices of a volume are its frames; other formats ignore it.
        """
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
            window: The intensity window as ``config.reading`` spells it; None for the default of the format.

        Returns:
            (H, W, 3) uint8 RGB, contiguous, by the rules of ``formats.intensity``.

        Raises:
            UnreadableImage: The frame cannot be decoded. The types of ``damage`` count as a damaged file.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Trait:
    """Something that all files of a series, or of a patient, have in common where nothing is mixed up.

    Attributes:
        group: What the files are of.
        key: Key of the series or patient, hashed already.
        name: What they have in common ("modality").
        value: The file's; compared with that of the others.
        shown: Whether the value may be shown to the user: it says nothing about a patient.
    """

    group: Literal["series", "patient"]
    key: str
    name: str
    value: str
    shown: bool = True


@dataclass(frozen=True, kw_only=True)
class FileSurvey:
    """What a file holds, from its header alone.

    Attributes:
        num_frames: Number of images in it.
        is_volume: Whether its images are slices, which ``Plane`` chooses.
        patient: Key of its patient, hashed already; None where the file does not tell.
        series: Key of the series of files that it belongs to, hashed already; None if it belongs to none.
        position: Its place in that series: files are sorted by it.
        warnings: What to warn of, each a clause that completes "3 files" ("may show burnt-in patient data").
        traits: What other files of its series or patient should have in common with it.
    """

    num_frames: int = 1
    is_volume: bool = False
    patient: str | None = None
    series: str | None = None
    position: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()
    traits: tuple[Trait, ...] = ()


class SurveyedReader(ImageReader, Protocol):
    """Reads a format that is recognized by content alone, and whose files may hold several images or none.

    A folder is searched for such files whatever their suffix. Each is surveyed once, before any pixel is decoded.
    """

    def for_file(self, plane: Plane) -> SurveyedReader:
        """Return a reader for one file; see ``ImageReader.for_file``."""
        ...

    def recognizes(self, head: bytes) -> bool:
        """Return whether a file with these first ``HEAD_BYTES`` bytes (or all of a shorter one) has this format."""
        ...

    def survey(self, file: BinaryIO, *, hashed: Callable[[str], str]) -> FileSurvey:
        """Read what the file holds, from no more than its header where the format allows that.

        Args:
            file: The file, at its start; it can seek.
            hashed: Turns what identifies a patient or a series into a key; nothing else may leave the reader.

        Raises:
            NoPixels: The file is sound and holds no image.
            UnreadableImage: The header is damaged. The types of ``damage`` count as such.
        """
        ...


HEAD_BYTES = 4096
"""Number of bytes by which ``SurveyedReader.recognizes`` judges a file; enough to unpack the head of a gzip stream."""


class UnreadableImage(Exception):  # noqa: N818 - becomes a BrokenImageError as soon as the file's name is known
    """A reader cannot decode a file.

    Args:
        problem: What is wrong, as a clause with a verb ("is empty (0 bytes)", "holds 12-bit JPEG samples").
        fix: What to do, as an imperative sentence without its full stop; None for the usual advice.
    """

    def __init__(self, problem: str, fix: str | None = None) -> None:
        self.problem, self.fix = problem, fix
        super().__init__(problem)


class NoPixels(UnreadableImage):
    """A sound file that holds no image: it is left out and listed, not an error.

    Args:
        kind: What it is instead, as a noun ("a structured report").
    """

    def __init__(self, kind: str) -> None:
        super().__init__(f"holds no image: it is {kind}", "Leave it out")


class BrokenImageError(TwinbudError):
    """An image file cannot be used; ``--skip-broken`` leaves it out.

    Args:
        problem: What is wrong, as a clause ("the file is empty").
        name: Name of the file in messages; None if there are several.
        advice: What to do with the file.
        skip: What to do otherwise; None where nothing can be left out.
    """

    def __init__(self, problem: str, *, name: str | None = None, advice: str = REPAIR, skip: str | None = SKIP) -> None:
        self.name, self.advice = name, advice
        super().__init__(problem, where=name, fix=f"{advice}, or {skip}" if skip else advice)

    def without_skip(self) -> BrokenImageError:
        """Return the same error for a caller that can leave nothing out."""
        return BrokenImageError(self.problem, name=self.name, advice=self.advice, skip=None)


@contextmanager
def nothing_left_out() -> Iterator[None]:
    """Do not advise ``--skip-broken`` in a BrokenImageError, where a command has no such option."""
    try:
        yield
    except BrokenImageError as error:
        raise error.without_skip() from error
