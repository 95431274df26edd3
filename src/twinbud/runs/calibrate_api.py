"""The flat Python API of ``twinbud calibrate``.

Torch is imported when the function is called, so that ``import twinbud`` is cheap.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from twinbud.config.calibration import COVERAGE, NUM_FOLDS, CalibrationSource
from twinbud.core.progress import SilentProgress, TerminalProgress

if TYPE_CHECKING:
    from twinbud.runs.calibrate import CalibratedRun


def calibrate(
    run: str | Path,
    *,
    on: CalibrationSource = "auto",
    folds: int = NUM_FOLDS,
    coverage: float = COVERAGE,
    per_class: bool = False,
    force: bool = False,
    show_progress: bool = True,
) -> CalibratedRun:
    """Calibrate a finished run, so that its probabilities can be trusted, and measure how far on its test part.

    Afterwards ``predict`` and ``evaluate`` give calibrated probabilities, prediction sets (``Predictions.sets``) and
    which images the model is not made for (``Predictions.is_novel``). All of it is in two files of the model folder.

    Args:
        run: A run folder. Its images must be where they were.
        on: The images to calibrate on. ``"val"``: the validation part. ``"folds"``: the labelled images, each judged by
            a model that is trained like the run's own without the fold that the image is in. ``"auto"``: the validation
            part if it has at least 100 images.
        folds: Number of folds, at least 2; so many runs are executed, each about as long as the run itself.
        coverage: Probability, in (0, 1), with which a prediction set contains the right class.
        per_class: Ensure it for the images of each class, not only on average.
        force: Calibrate a calibrated run again.
        show_progress: Report on standard error.

    Returns:
        What was chosen, and how it does on the test part, with intervals.

    Raises:
        TwinbudError: The run is not finished, or is calibrated; its images have changed, or are too few.
        Stopped: The system requested a stop; the same call goes on.

    Example:
        >>> import twinbud
        >>> calibrated = twinbud.calibrate("runs/first", folds=2, show_progress=False)  # doctest: +SKIP
        >>> calibrated.report.trust.temperature > 0  # doctest: +SKIP
        True
    """
    from twinbud.config.fields import read_value
    from twinbud.runs.calibrate import calibrate_run

    return calibrate_run(
        Path(run),
        on=read_value("on", on, CalibrationSource),
        num_folds=read_value("folds", folds, int),
        coverage=read_value("coverage", coverage, float),
        per_class=per_class,
        force=force,
        progress=TerminalProgress() if show_progress else SilentProgress(),
    )
