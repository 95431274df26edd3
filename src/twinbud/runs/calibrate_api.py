"""The flat Python API of ``twinbud calibrate``.

Torch is imported when the function is called, so that ``import twinbud`` is cheap.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from twinbud.config.calibration import COVERAGE, NUM_FOLDS, CalibrationSource, read_coverage, read_folds
from twinbud.core.errors import TwinbudError
from twinbud.core.progress import SilentProgress, TerminalProgress
from twinbud.core.torch_state import own_torch_state

if TYPE_CHECKING:
    from twinbud.runs.calibrate import CalibratedRun


@own_torch_state()
def calibrate(
    run: str | Path,
    data: str | Path | None = None,
    *,
    on: CalibrationSource = "auto",
    folds: int | None = None,
    coverage: float = COVERAGE,
    per_class: bool = False,
    data_root: str | Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_columns: str | None = None,
    patient_column: str | None = None,
    split_column: str | None = None,
    patient_salt: str | Path | None = None,
    force: bool = False,
    show_progress: bool = True,
) -> CalibratedRun:
    """Calibrate a finished run, so that its probabilities can be trusted, and measure how far on its test part.

    Afterwards ``predict`` and ``evaluate`` give calibrated probabilities, prediction sets (``Predictions.sets``) and
    which images the model is not made for (``Predictions.is_novel``). All of it is in two files of the model folder.

    Args:
        run: A run folder. Its images must be where they were, unless ``data`` is given.
        data: Labelled images of another place, as for ``evaluate``, to calibrate a calibrated run for: half of them
            choose, and the other half measures. None: images of the run.
        on: The images to calibrate on. ``"val"``: the validation part. ``"folds"``: the labelled images, each judged by
            a model that is trained like the run's own without the fold that the image is in. ``"auto"``: the validation
            part if it has at least 100 images.
        folds: Number of folds, at least 2; so many runs are executed, each about as long as the run itself. None: 5.
        coverage: Probability, in (0, 1), with which a prediction set contains the right class.
        per_class: Ensure it for the images of each class, not only on average.
        data_root: Local copy of the set that ``data`` names; None for where it is downloaded to.
        image_column: CSV column of the image path in ``data``; None for the run's, and likewise below.
        label_column: CSV column of the class name.
        label_columns: CSV columns of several labels, ``"A,B,C"``.
        patient_column: CSV column of the patient.
        split_column: CSV column with train, val or test.
        patient_salt: File with the secret that hashes patient ids of DICOM; None for the run's.
        force: Calibrate a calibrated run again; with ``data`` it always is.
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
    from twinbud.config.fields import option_of, read_value
    from twinbud.core.launch import require_single_process
    from twinbud.runs.calibrate import calibrate_run
    from twinbud.runs.recalibrate import recalibrate_run
    from twinbud.trust.fit import Wanted

    require_single_process("twinbud.calibrate()")
    progress = TerminalProgress() if show_progress else SilentProgress()
    wanted = Wanted(coverage=read_coverage(coverage), per_class=per_class)
    source = {
        "data_root": data_root,
        "image_column": image_column,
        "label_column": label_column,
        "label_columns": label_columns,
        "patient_column": patient_column,
        "split_column": split_column,
        "patient_salt": patient_salt,
    }
    given = {name: str(value) for name, value in source.items() if value is not None}
    source_of_run = read_value("on", on, CalibrationSource)
    num_folds = NUM_FOLDS if folds is None else read_folds(folds)
    if folds is not None and (data is not None or source_of_run == "val"):
        problem = f"'{folds}' has no effect with {'--on val' if data is None else '--data'}, which has no folds"
        raise TwinbudError(problem, where="--folds", fix="Leave it out")
    if data is None:
        if given:
            name, value = next(iter(given.items()))
            problem = f"'{value}' has no effect without --data"
            raise TwinbudError(problem, where=option_of(name), fix="Leave it out, or give --data")
        return calibrate_run(
            Path(run), wanted=wanted, on=source_of_run, num_folds=num_folds, force=force, progress=progress
        )
    if source_of_run != "auto":
        problem = f"'{on}' chooses among the run's own images, but --data names others"
        raise TwinbudError(problem, where="--on", fix="Leave out --on or --data")
    return recalibrate_run(Path(run), {"data": str(data), **given}, wanted, progress)
