"""The content of a run's page and model card, saved as ``summary.json``.

With it, ``twinbud report`` writes both again without images or teacher, and a newer version of twinbud can do so for
an older run. A change of the format raises ``FORMAT_VERSION`` and adds a step to ``_UPGRADES``; a new field with a
default needs neither.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from twinbud.core.errors import TwinbudError
from twinbud.core.files import read_sealed, sealed, write_json
from twinbud.core.typed_json import from_json, to_json
from twinbud.evaluation.bootstrap import Interval
from twinbud.evaluation.leak import LeakMetrics
from twinbud.evaluation.metrics import EvaluationMetrics
from twinbud.training.checkpoint import EpochRecord
from twinbud.trust.report import TrustReport

FORMAT_VERSION = 1
_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""For each earlier version, the conversion of its content to the next version."""
_VERSION_KEY = "format_version"
MAX_PICTURE_PIXELS = 320
"""Longest side of a picture; larger ones are reduced to it."""

Histories = Mapping[str, tuple[EpochRecord, ...]]
"""Training history by name of the run; the name of a single run is empty."""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A wrongly classified test image."""

    picture: bytes
    """PNG file, see ``encode_picture``."""
    path: str
    label: str
    prediction: str
    confidence: float
    """Probability of the predicted class, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class ExplainedImage:
    """An image under the map of what its prediction depends on."""

    picture: bytes
    """PNG file, see ``encode_picture``."""
    path: str
    label: str | None
    """The image's own label, if it is known."""
    prediction: str
    explained: str
    """The label that is explained."""
    probability: float
    """Its probability, in [0, 1]."""
    score: float
    """The area between the deletion curves, in [-1, 1]."""
    warning: str | None = None
    """Why the map does not explain the prediction; None if it passed all checks."""


@dataclass(frozen=True, kw_only=True)
class Explained:
    """Maps of images, and what is known of such maps of this network."""

    kind: str
    """How the maps are made."""
    finding: str
    """The result of the check with random weights, a sentence."""
    images: tuple[ExplainedImage, ...]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A training image that represents its class."""

    picture: bytes
    """PNG file, see ``encode_picture``."""
    label: str


@dataclass(frozen=True, kw_only=True)
class Width:
    """A selected width: its size in teacher and student."""

    name: str
    teacher: int
    student: int
    overlap: float | None
    """Share of the student's indices that the auxiliary has as well, in [0, 1]; None without auxiliary."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of a comparison of runs; None where not measured."""

    name: str
    accuracy: float
    accuracy_interval: Interval | None = None
    balanced_accuracy: float | None = None
    auroc_macro: float | None = None
    train_seconds: float | None = None
    images_per_second: float | None = None
    marked: bool = False
    """Whether the rest of the page describes this run."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """Everything that the page and the model card show. Both escape every text."""

    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    """Label and value of each property of the run: method, teacher, student, time and others."""
    metrics: EvaluationMetrics
    """Of the test part."""
    leak: LeakMetrics | None = None
    """What a split would claim that ignores copies; None if it was not measured."""
    trust: TrustReport | None = None
    """How far the answers can be trusted; None before ``twinbud calibrate``."""
    num_train: int | None = None
    """Number of labelled training images; None if unknown."""
    histories: Histories = field(default_factory=dict)
    comparison: tuple[Arm, ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    explained: Explained | None = None
    """What ``twinbud explain`` found; None if it was not called for the run."""
    examples: tuple[Example, ...] = ()
    selection: tuple[Width, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences about the origin and the limitations of the numbers."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON values."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON values."""
    opens_with_timm: bool = True
    """Whether timm alone can open the model folder; otherwise twinbud is needed."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""
        return self.metrics.classes

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values, with the format version."""
        return {_VERSION_KEY: FORMAT_VERSION, **to_json(self)}

    @classmethod
    def from_json(cls, content: Any) -> RunSummary:
        """Convert back from the plain JSON values of this or an earlier format version.

        Raises:
            ValueError: A later format version, a missing key, or a value of another type.
        """
        version = content.get(_VERSION_KEY) if isinstance(content, dict) else None
        if not isinstance(version, int) or version < 1:
            raise ValueError(f"it has no {_VERSION_KEY}")
        if version > FORMAT_VERSION:
            raise ValueError(
                f"its {_VERSION_KEY} is {version} and this version of twinbud reads up to {FORMAT_VERSION}"
            )
        for earlier in range(version, FORMAT_VERSION):
            content = _UPGRADES[earlier](content)
        return from_json(cls, content, "summary")


def encode_picture(pixels: np.ndarray) -> bytes:
    """Encode (H, W), (H, W, 1) or (H, W, 3) uint8 pixels as PNG, reduced to at most 320 pixels per side."""
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))
    picture.thumbnail((MAX_PICTURE_PIXELS, MAX_PICTURE_PIXELS))
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def write_summary(path: Path, summary: RunSummary) -> None:
    """Write a summary as JSON, replacing ``path`` as a whole.

    Raises:
        TwinbudError: The disk is full or the folder cannot be written.
    """
    write_json(path, sealed(summary.to_json()))


def read_summary(path: Path) -> RunSummary:
    """Read a summary.

    Raises:
        TwinbudError: The file is missing, damaged, or of a later format version.
    """
    again = f"Repeat the run: 'twinbud train --config {path.with_name('config.yaml')}' with another --output"
    try:
        return read_sealed(path, RunSummary.from_json)
    except FileNotFoundError as error:
        raise TwinbudError("the file is missing, and the report is made from it", where=str(path), fix=again) from error
    except (OSError, ValueError) as error:
        text = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
        raise TwinbudError(f"the summary of the run cannot be read ({text})", where=str(path), fix=again) from error
