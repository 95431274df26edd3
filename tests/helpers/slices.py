"""A format of several images a file, made of JSON, to test what is common to all such formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
import pytest

from twinbud.config.reading import Plane
from twinbud.data.formats import decoding
from twinbud.data.formats.base import FileSurvey, ImageInfo, NoPixels

MAGIC = b"SLICES"


class SlicesReader:
    """Image ``n`` of a file has the value ``10 * n`` everywhere; with a window in units, one more."""

    formats: ClassVar[tuple[str, ...]] = ("Slices",)
    damage: ClassVar[tuple[type[Exception], ...]] = (ValueError, KeyError)

    def for_file(self, plane: Plane) -> SlicesReader:  # noqa: ARG002
        return self

    def recognizes(self, head: bytes) -> bool:
        return head.startswith(MAGIC)

    def probe(self, contents: bytes) -> bool:
        return self.recognizes(contents)

    def survey(self, file: BinaryIO, *, hashed: Callable[[str], str]) -> FileSurvey:
        content = json.loads(file.read()[len(MAGIC) :])
        if not content["frames"]:
            raise NoPixels("a report")
        return FileSurvey(
            num_frames=content["frames"],
            patient=hashed(content["patient"]) if "patient" in content else None,
            series=hashed(content["series"]) if "series" in content else None,
            position=(content.get("position", 0.0),),
            warnings=("may show names",) if content.get("burnt") else (),
        )

    def describe(self, contents: bytes) -> ImageInfo:
        content = json.loads(contents[len(MAGIC) :])
        if not content["frames"]:
            raise NoPixels("a report")
        return ImageInfo(width=4, height=3, num_frames=content["frames"], has_named_frames=True)

    def read(self, contents: bytes, *, frame: int, window: str | None) -> np.ndarray:
        content = json.loads(contents[len(MAGIC) :])
        value = 10 * frame + content.get("value", 0) + (window is not None)
        return np.full((3, 4, 3), value, np.uint8)


def use_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let twinbud read the format, in this test."""
    reader = SlicesReader()
    monkeypatch.setattr(decoding, "SURVEYED", (reader,))
    monkeypatch.setattr(decoding, "READERS", (*decoding.READERS, reader))


def save_slices(path: Path, frames: int = 1, **content: object) -> Path:
    """Write a file of ``frames`` images; none for a file without an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(MAGIC + json.dumps({"frames": frames, **content}).encode())
    return path
