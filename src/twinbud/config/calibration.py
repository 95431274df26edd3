"""Choices of ``twinbud calibrate`` and their defaults."""

from __future__ import annotations

from typing import Literal

from twinbud.core.errors import TwinbudError

CalibrationSource = Literal["auto", "folds", "val"]
CALIBRATION_SOURCES: tuple[CalibrationSource, ...] = ("auto", "folds", "val")
"""The first one is the default."""
NUM_FOLDS = 5
COVERAGE = 0.9
MIN_VALIDATION_IMAGES = 100
"""With fewer, ``auto`` takes the labelled images in folds instead of the validation part."""


def read_folds(value: object) -> int:
    """Convert a number of folds; text is accepted.

    Raises:
        TwinbudError: It is no whole number, or fewer than 2.
    """
    from twinbud.config.fields import read_value  # it takes a second, which the names above should not cost

    folds = read_value("folds", value, int)
    if folds < 2:
        raise TwinbudError(f"{folds} is fewer than 2", where="--folds", fix="Give at least 2")
    return folds


def read_coverage(value: object) -> float:
    """Convert a coverage; text is accepted.

    Raises:
        TwinbudError: It is no number, or not between 0 and 1.
    """
    from twinbud.config.fields import read_value

    coverage = read_value("coverage", value, float)
    if not 0 < coverage < 1:
        problem = f"{coverage:g} is not a probability between 0 and 1"
        raise TwinbudError(problem, where="--coverage", fix="Give a value such as 0.9")
    return coverage
