"""How image files are read: which intensity window, and which images of a file or series that holds several.

================= ======================================================================================
``--window``      ..
``dicom``         the window that the file gives; without one, its whole range (see docs/dicom.md); of a NIfTI
                  volume, its robust percentiles (see docs/nifti.md)
``auto``          the whole range of the values of the image, whatever window the file gives
``lung``          center -600, width 1500, and likewise the other names of ``NAMED_WINDOWS``
``CENTER,WIDTH``  in the units of the file after its rescale: Hounsfield units for CT
================= ======================================================================================

``--frames`` is ``all``, ``middle`` (of 4 images the third, as ``4 // 2`` counts from 0) or a number counted from 0.

Of a volume, the images are the slices along ``--axis``; ``--volume`` chooses one of a file of several.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator

from twinbud.core.errors import TwinbudError, unknown_choice

Axis = Literal["axial", "coronal", "sagittal"]
DICOM_WINDOW, AUTO_WINDOW = "dicom", "auto"
ALL_FRAMES, MIDDLE_FRAME = "all", "middle"
NAMED_WINDOWS: Mapping[str, tuple[float, float]] = {
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "brain": (40.0, 80.0),
    "bone": (400.0, 1800.0),
}
"""Center and width of the windows with a name, in Hounsfield units."""


@dataclass(frozen=True)
class Plane:
    """Which slices of a volume.

    Attributes:
        axis: The direction in which they follow each other.
        volume: Which volume of a file of several, counted from 0; None where a file may hold only one.
    """

    axis: Axis = "axial"
    volume: int | None = None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files are read; a model folder keeps it, so that new files are read as those of the training were.

    Attributes:
        window: ``dicom``, ``auto``, a name of ``NAMED_WINDOWS`` or ``CENTER,WIDTH``.
        frames: ``all``, ``middle`` or a number counted from 0.
        axis: Direction of the slices of a volume.
        volume: Which volume of a file of several, counted from 0; None where a file may hold only one.

    Raises:
        TwinbudError: Another window, other frames, another axis, or no such number.
    """

    window: str = DICOM_WINDOW
    frames: str = ALL_FRAMES
    axis: Axis = "axial"
    volume: int | None = None

    def __post_init__(self) -> None:
        if self.axis not in get_args(Axis):
            raise unknown_choice("--axis", self.axis, get_args(Axis))
        if self.volume is not None and (type(self.volume) is not int or self.volume < 0):
            raise TwinbudError(f"'{self.volume}' is not the number of a volume, counted from 0", where="--volume")
        object.__setattr__(self, "window", canonical_window(self.window))
        object.__setattr__(self, "frames", canonical_frames(self.frames))

    @property
    def window_or_none(self) -> str | None:
        """The window as ``ImageRef`` has it: None for the default."""
        return None if self.window == DICOM_WINDOW else self.window

    @cached_property
    def plane(self) -> Plane:
        """Which slices of a volume are read; one object for all images."""
        return Plane(self.axis, self.volume)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; ``from_json`` is the inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Reading:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: A value that is no window or names no frames.
            TypeError: An unknown key, or a value that is not text.
        """
        try:
            return cls(**content)
        except (TwinbudError, AttributeError) as error:
            raise ValueError(f"reading is not usable: {error}") from error

    def chosen_frames(self, count: int) -> range:
        """Return the indices of the images to take from ``count`` images.

        A number is returned as it is, also where it is too large: reading that image then names the file.
        """
        if self.frames == ALL_FRAMES:
            return range(count)
        number = count // 2 if self.frames == MIDDLE_FRAME else int(self.frames)
        return range(number, number + 1)


def canonical_window(text: str) -> str:
    """Return the one spelling of a window.

    >>> canonical_window("40, 400.0")
    '40,400'

    Raises:
        TwinbudError: It is no window.
    """
    if text in (DICOM_WINDOW, AUTO_WINDOW, *NAMED_WINDOWS):
        return text
    if "," not in text:
        raise unknown_choice("--window", text, [DICOM_WINDOW, AUTO_WINDOW, *NAMED_WINDOWS, "CENTER,WIDTH"])
    try:
        center, width = map(float, text.split(","))
    except ValueError:
        center, width = math.nan, math.nan
    if not (math.isfinite(center) and math.isfinite(width) and width > 0):
        fix = "Write two numbers, the second above 0, such as --window=40,400 or --window=-600,1500"
        raise TwinbudError(f"'{text}' is not CENTER,WIDTH", where="--window", fix=fix)
    return f"{_shortest(center)},{_shortest(width)}"


def window_limits(window: str) -> tuple[float, float]:
    """Return center and width of a named window or of ``CENTER,WIDTH``."""
    if window in NAMED_WINDOWS:
        return NAMED_WINDOWS[window]
    center, width = map(float, window.split(","))
    return center, width


def canonical_frames(text: str) -> str:
    """Return the one spelling of a choice of frames.

    Raises:
        TwinbudError: It is no such choice.
    """
    if text in (ALL_FRAMES, MIDDLE_FRAME):
        return text
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise unknown_choice("--frames", text, [ALL_FRAMES, MIDDLE_FRAME, "a number counted from 0"])
    return str(int(text))


def _shortest(number: float) -> str:
    return str(int(number)) if number == int(number) else repr(number)


Window = Annotated[str, AfterValidator(canonical_window)]
Frames = Annotated[str, AfterValidator(canonical_frames)]
