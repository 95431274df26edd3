"""Compare finished runs by cross-validation on the labelled images that all of them have, without their test parts.

A test part that has chosen between networks no longer measures the chosen one. Out-of-fold predictions choose without
it, and ``twinbud calibrate`` needs the same ones afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twinbud.config.calibration import NUM_FOLDS
from twinbud.config.schema import WHOLE_METHODS, ModelConfig, RunConfig
from twinbud.core.errors import TwinbudError, writes_to
from twinbud.core.progress import Progress, SilentProgress
from twinbud.data.formats.base import nothing_left_out
from twinbud.data.split_file import SplitRow
from twinbud.evaluation.bootstrap import Interval, bootstrap_units, paired_difference
from twinbud.evaluation.metrics import evaluate
from twinbud.evaluation.predictions import Predictions
from twinbud.models.model_folder import open_model_folder
from twinbud.runs.cross_fit import out_of_fold
from twinbud.runs.resource_cache import ResourceCache
from twinbud.runs.result import RunCost, read_metrics
from twinbud.runs.run_dir import METRICS, locked, read_run_config
from twinbud.runs.run_images import open_run_images
from twinbud.runs.run_split import read_run_split
from twinbud.tasks.base import Task
from twinbud.training.amp import cpu_threads
from twinbud.trust.record import with_temperature
from twinbud.trust.temperature import fit_temperature, negative_log_likelihood

_FIX = "Train all with the same --data, --split-seed, --seed, --fraction and --near-duplicates"
_SEED = 0
"""Of the bootstrap: a comparison has no seed of its own."""


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One run in a comparison; all but its cost is measured on out-of-fold predictions.

    Attributes:
        folder: The run folder.
        method: Its method, with the network that ``finetune`` and ``probe`` keep.
        log_loss: Mean negative log-likelihood of the labels in nats, at the run's own best temperature.
        accuracy: In [0, 1]; of several labels an image, the share of the known ones.
        balanced_accuracy: In [0, 1]; None where it is undefined.
        log_loss_difference: ``log_loss`` minus that of the best run, with its 95 % interval; None for the best run.
        accuracy_difference: ``accuracy`` minus that of the best run, likewise.
        num_parameters: Parameters of the delivered network; None in runs of earlier versions, and likewise below.
        num_multiplications: Multiplications for one image.
        latency_seconds: Median time of one image on one CPU thread.
    """

    folder: Path
    method: str
    log_loss: float
    accuracy: float
    balanced_accuracy: float | None
    log_loss_difference: tuple[float, Interval] | None
    accuracy_difference: tuple[float, Interval] | None
    num_parameters: int | None
    num_multiplications: int | None
    latency_seconds: float | None

    @property
    def is_undecided(self) -> bool:
        """Whether the data cannot tell this run from the best one: the interval of the log-loss contains 0."""
        return self.log_loss_difference is not None and self.log_loss_difference[1][0] <= 0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs from the lowest log-loss to the highest.

    Attributes:
        runs: At least two.
        num_images: Labelled images that all runs learned from.
        num_units: Patients among them that the intervals are over; images without a known patient count as one each.
        num_folds: Number of folds.
    """

    runs: tuple[ComparedRun, ...]
    num_images: int
    num_units: int
    num_folds: int

    @property
    def best(self) -> ComparedRun:
        """The run with the lowest log-loss."""
        return self.runs[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Judged:
    """A run and its out-of-fold predictions, in the order of their paths."""

    folder: Path
    method: str
    cost: RunCost
    predictions: Predictions
    losses_N: np.ndarray
    """(N,) float64."""
    hits_N: np.ndarray
    """(N,) float64 in [0, 1]: whether each image is classified correctly; of several labels, the share."""


@nothing_left_out()
@writes_to(None)
def compare_runs(
    folders: Sequence[Path], *, num_folds: int = NUM_FOLDS, progress: Progress | None = None
) -> Comparison:
    """Compare runs that learned from the same labelled images, by what they say of these out of fold.

    Each run is repeated once for each fold, unless it was before. Test parts are not opened.

    Args:
        folders: At least two finished runs.
        num_folds: Number of folds, at least 2.
        progress: Receives progress; silent by default.

    Raises:
        TwinbudError: There are fewer than two runs, one is given twice or not finished, or they differ in images,
            labels, split or task.
        Stopped: The process received a signal to stop; the same call goes on.
    """
    _require_distinct(folders)
    configs = [read_run_config(folder) for folder in folders]
    costs = [read_metrics(folder / METRICS).cost for folder in folders]
    splits = [_read_split(folder) for folder in folders]
    tasks = [open_model_folder(folder / "model").task for folder in folders]
    for folder, split, task in zip(folders[1:], splits[1:], tasks[1:], strict=True):
        _require_alike(folder, split, task, folders[0], splits[0], tasks[0])
    progress, resource_cache = progress or SilentProgress(), ResourceCache()
    judged = [
        _judge(config, cost, num_folds, progress, resource_cache) for config, cost in zip(configs, costs, strict=True)
    ]
    judged.sort(key=lambda run: float(run.losses_N.mean()))
    _, units_N = bootstrap_units(judged[0].predictions)
    return Comparison(
        runs=tuple(_compared(run, judged[0], units_N) for run in judged),
        num_images=len(units_N),
        num_units=int(units_N.max()) + 1,
        num_folds=num_folds,
    )


def _require_distinct(folders: Sequence[Path]) -> None:
    if len(folders) < 2:
        raise TwinbudError(f"{len(folders)} run cannot be compared", where="compare", fix="Give at least two runs")
    places = [folder.resolve() for folder in folders]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise TwinbudError("the run is given twice", where=str(folders[number]), fix="Give each run once")


def _read_split(folder: Path) -> tuple[SplitRow, ...]:
    return tuple(sorted(read_run_split(folder), key=lambda row: row.image_path))


def _require_alike(
    folder: Path, split: Sequence[SplitRow], task: Task, first: Path, first_split: Sequence[SplitRow], first_task: Task
) -> None:
    """Refuse a run that did not learn from the same images as the first one, or answers another question."""
    if (task.name, task.classes) != (first_task.name, first_task.classes):
        problem = f"its task or classes are not those of {first} ({task.name}: {', '.join(task.classes)})"
        raise TwinbudError(problem, where=str(folder), fix="Compare runs with the same --task and --classes")
    own, other = ({_facts(row) for row in rows} for rows in (split, first_split))
    if own != other:
        path = min(facts[0] for facts in own ^ other)
        problem = f"it did not learn from the same images as {first}: '{path}' differs in pixels, label or part"
        raise TwinbudError(problem, where=str(folder), fix=_FIX)


def _facts(row: SplitRow) -> tuple[str, str | None, str, str, bool]:
    return row.image_path, row.digest, row.label, row.split, row.labelled


def _judge(
    config: RunConfig, cost: RunCost, num_folds: int, progress: Progress, resource_cache: ResourceCache
) -> _Judged:
    folder = config.output
    progress.note(f"cross-validating {folder}")
    with locked(folder), cpu_threads(config.training.threads):
        images = open_run_images(config, progress, resource_cache)
        model_folder = open_model_folder(folder / "model")
        examples = out_of_fold(config, images, num_folds, progress, resource_cache)
    order = np.argsort([images.image_index.rows[row].path for row in examples.rows])
    rows = tuple(examples.rows[place] for place in order)
    predictions = images.predictions(model_folder, rows, examples.logits_NK[order])
    task, labels = model_folder.task, predictions.labels
    assert labels is not None
    temperature = fit_temperature(task, examples.logits_NK[order], labels, np.ones(len(rows)))
    predictions = with_temperature(predictions, temperature)
    return _Judged(
        folder=folder,
        method=_method(config.model),
        cost=cost,
        predictions=predictions,
        losses_N=negative_log_likelihood(task, predictions.probabilities, labels),
        hits_N=_hits(predictions, labels),
    )


def _method(model: ModelConfig) -> str:
    return f"{model.method} {model.pretrained}" if model.method in WHOLE_METHODS else model.method


def _hits(predictions: Predictions, labels: np.ndarray) -> np.ndarray:
    """Return how far each image is classified correctly, (N,) float64 in [0, 1]; 0 for one without a known label."""
    right = predictions.predicted == labels
    if right.ndim == 1:
        return right.astype(np.float64)
    is_known_NC = ~np.isnan(labels)
    return (right & is_known_NC).sum(axis=1) / np.maximum(is_known_NC.sum(axis=1), 1)


def _compared(run: _Judged, best: _Judged, units_N: np.ndarray) -> ComparedRun:
    metrics = evaluate(run.predictions, num_bootstrap=0)
    is_best = run is best
    return ComparedRun(
        folder=run.folder,
        method=run.method,
        log_loss=float(run.losses_N.mean()),
        accuracy=metrics.accuracy,
        balanced_accuracy=metrics.balanced_accuracy,
        log_loss_difference=None if is_best else paired_difference(run.losses_N, best.losses_N, units_N, seed=_SEED),
        accuracy_difference=None if is_best else paired_difference(run.hits_N, best.hits_N, units_N, seed=_SEED),
        num_parameters=run.cost.num_parameters,
        num_multiplications=run.cost.num_multiplications,
        latency_seconds=run.cost.latency_seconds,
    )
