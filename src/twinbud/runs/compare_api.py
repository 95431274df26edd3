"""The flat Python API of ``twinbud compare``.

Torch is imported when the function is called, so that ``import twinbud`` is cheap.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from twinbud.config.calibration import NUM_FOLDS, read_folds
from twinbud.core.progress import SilentProgress, TerminalProgress
from twinbud.core.torch_state import own_torch_state

if TYPE_CHECKING:
    from twinbud.runs.compare import Comparison


@own_torch_state()
def compare(runs: Iterable[str | Path], *, folds: int = NUM_FOLDS, show_progress: bool = True) -> Comparison:
    """Compare finished runs by cross-validation on their labelled images; no test part is opened.

    All runs must have learned from the same labelled images. Each is repeated without each fold of them, unless
    ``calibrate`` or ``compare`` has done so before; the predictions are kept in the run folder, where ``calibrate``
    finds them.

    Args:
        runs: At least two run folders. Their images must be where they were.
        folds: Number of folds, at least 2; so many runs are executed for each of ``runs``.
        show_progress: Report on standard error.

    Returns:
        The runs from the lowest log-loss to the highest, with paired 95 % intervals over patients or images.

    Raises:
        TwinbudError: A run is not finished; or the runs differ in images, labels, split or task.
        Stopped: The system requested a stop; the same call goes on.

    Example:
        >>> import twinbud
        >>> found = twinbud.compare(["runs/first", "runs/second"], folds=2, show_progress=False)  # doctest: +SKIP
        >>> found.best.log_loss <= found.runs[-1].log_loss  # doctest: +SKIP
        True
    """
    from twinbud.config.fields import read_paths
    from twinbud.core.launch import require_single_process
    from twinbud.runs.compare import compare_runs

    require_single_process("twinbud.compare()")
    progress = TerminalProgress() if show_progress else SilentProgress()
    return compare_runs(read_paths("runs", runs), num_folds=read_folds(folds), progress=progress)
