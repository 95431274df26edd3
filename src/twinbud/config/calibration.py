"""Choices of ``twinbud calibrate`` and their defaults."""

from __future__ import annotations

from typing import Literal

CalibrationSource = Literal["auto", "folds", "val"]
CALIBRATION_SOURCES: tuple[CalibrationSource, ...] = ("auto", "folds", "val")
"""The first one is the default."""
NUM_FOLDS = 5
COVERAGE = 0.9
MIN_VALIDATION_IMAGES = 100
"""With fewer, ``auto`` takes the labelled images in folds instead of the validation part."""
