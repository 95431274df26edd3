"""``--measure-leak``: a second run inside the first one's folder, on a split that divides copies of one picture.

The second run is a whole one, with settings, page and checkpoints. It comes first, so that a run that was stopped in
either of them continues there. Its results are read from its files, whether it has just finished or long ago.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twinbud.config.schema import RunConfig
from twinbud.core.csv_files import read_cells
from twinbud.core.errors import TwinbudError
from twinbud.data.duplicates import blank_digests
from twinbud.data.split_file import read_split
from twinbud.evaluation.leak import compare_splits, shown_in_training
from twinbud.runs.context import Job
from twinbud.runs.inner_run import finish_inner_run
from twinbud.runs.result import RunMetrics, read_metrics
from twinbud.runs.run_dir import MARKER, METRICS, NAIVE

_AGAIN = "Replace both runs with --force"


@dataclass(frozen=True, kw_only=True)
class NaiveRun:
    """The finished run on the naive split.

    Attributes:
        metrics: Its metrics.
        is_correct: For each of its test images, by row of the index, whether it is classified correctly.
        shown: Rows of its test images with a copy among the images that it learned from.
    """

    metrics: RunMetrics
    is_correct: dict[int, bool]
    shown: frozenset[int]

    def beside(self, metrics: RunMetrics) -> RunMetrics:
        """Return the metrics of the run on the grouped split, with the comparison."""
        return replace(metrics, leak=compare_splits(metrics, self.metrics, self.is_correct, self.shown))


def naive_config(config: RunConfig) -> RunConfig:
    """Return the same run on the naive split, in a folder inside the run folder."""
    folder = config.output / NAIVE
    return replace(
        config,
        data=replace(config.data, near_duplicates="ignore", split_duplicates=True),
        output=folder,
        force=False,
        resume=config.resume and (folder / MARKER).exists(),
        measure_leak=False,
    )


def check_measurable(job: Job) -> None:
    """Refuse images whose leak cannot be measured, before anything is written.

    Raises:
        TwinbudError: The data has a split of its own, or several labels an image.
    """
    if not job.config.measure_leak:
        return
    if job.split.given:
        problem = "'--measure-leak' makes two splits, but the images come with a split"
        fix = "Leave out --measure-leak, or give the images without their split"
        raise TwinbudError(problem, where=job.image_index.source, fix=fix)
    if not job.task.is_exclusive:
        problem = "'--measure-leak' compares accuracies, which do not exist with several labels per image"
        raise TwinbudError(problem, where=f"--task {job.task.name}", fix="Leave out --measure-leak")


def train_naive(config: RunConfig, job: Job, train: Callable[[RunConfig], Any]) -> NaiveRun | None:
    """Train on the naive split, unless that run has finished, and read its results; None without ``measure_leak``.

    Args:
        config: The settings of the run on the grouped split.
        job: That run, or the fine-tuning of its teacher.
        train: Executes a run.

    Raises:
        TwinbudError: The finished run has other settings or images, or its files cannot be read.
    """
    if not config.measure_leak:
        return None
    learns_unlabelled = config.recovery.recover == "unlabelled"
    config = naive_config(config)
    finish_inner_run(config, train, option="--measure-leak")
    return _read(job, config.output, learns_unlabelled=learns_unlabelled)


def _read(job: Job, folder: Path, *, learns_unlabelled: bool) -> NaiveRun:
    """Read the results; a run that recovers without labels learns from all images of the training part."""
    row_of, digests = {row.path: index for index, row in enumerate(job.image_index.rows)}, job.image_store.digests
    split = read_split(folder / "split.csv")
    if {row.image_path: row.digest for row in split} != dict(zip(row_of, digests, strict=True)):
        raise TwinbudError("the run of --measure-leak used other images", where=str(folder), fix=_AGAIN)
    metrics = read_metrics(folder / METRICS, _AGAIN)
    columns = ("path", "label", "prediction")
    predictions = read_cells(folder / "predictions.csv", columns, exact=columns)
    is_correct = {row_of[cells["path"]]: cells["label"] == cells["prediction"] for _, cells in predictions}
    shown = shown_in_training(
        digests,
        job.split.near_pairs,
        test=is_correct,
        learned=[
            row_of[row.image_path] for row in split if row.split == "train" and (row.labelled or learns_unlabelled)
        ],
        blank=blank_digests(job.image_store),
    )
    return NaiveRun(metrics=metrics, is_correct=is_correct, shown=shown)
