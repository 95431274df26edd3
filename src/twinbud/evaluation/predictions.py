"""Predictions of a model and their CSV file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from twinbud.core.csv_files import read_cells, write_csv
from twinbud.core.errors import TwinbudError
from twinbud.data.findings import SEPARATOR
from twinbud.tasks.base import Task
from twinbud.tasks.single import SingleLabel


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Class probabilities of N images over K classes, with logits and labels where these are known.

    Raises:
        TwinbudError: Shapes disagree; a label is not a class index; or probabilities or logits are not finite,
            probabilities are outside [0, 1] or do not sum to 1 (within 1e-3). The error names the image.
    """

    paths: tuple[str, ...]
    """N paths."""

    labels: np.ndarray | None
    """(N,) int64 class indices, or of several labels (N, K) float32 targets (``Task.encode``); None if unknown."""

    probabilities: np.ndarray
    """(N, K) float64; each row sums to 1 unless an image has several labels."""

    classes: tuple[str, ...]
    """K class names, in the order of the columns."""

    patient_ids: tuple[str | None, ...] | None = None
    """N patient ids, None for an image without one; None if no ids are known at all."""

    logits: np.ndarray | None = None
    """(N, outputs of the task) float32, which give ``probabilities``; None if only probabilities are known."""

    task: Task | None = None
    """What was asked of the images; None for one class an image."""

    sets: np.ndarray | None = None
    """(N, C) bool: which classes the prediction set of each image contains; None without prediction sets."""

    is_novel: np.ndarray | None = None
    """(N,) bool: whether an image is unlike those that the network was made for; None where it is not known."""

    def __post_init__(self) -> None:
        columns = {"probabilities": (self.probabilities, self.classes), "logits": (self.logits, self.output_names)}
        for name, (array, names) in columns.items():
            shape = (len(self.paths), len(names))
            if array is not None and array.shape != shape:
                problem = f"the shape is {array.shape}, not {shape} (images, classes)"
                raise TwinbudError(problem, where=name, fix="Give one row per image and one column per class")
        for name, values in (("labels", self.labels), ("patient_ids", self.patient_ids)):
            if values is not None and len(values) != len(self.paths):
                problem = f"there are {len(values)} for {len(self.paths)} images"
                raise TwinbudError(problem, where=name, fix="Give one per image")
        diverged = "Check the weights and the learning rate"
        self._refuse(~np.isfinite(self.probabilities).all(axis=1), "a probability is NaN or infinite", diverged)
        if self.logits is not None:
            self._refuse(~np.isfinite(self.logits).all(axis=1), "a logit is NaN or infinite", diverged)
        softmax = "Apply softmax to the logits"
        lowest, sums = self.probabilities.min(axis=1, initial=1), self.probabilities.sum(axis=1)
        self._refuse(lowest < 0, "a probability is {:.4g}, which is below 0", softmax, lowest)
        if not self.asked.is_exclusive:
            highest = self.probabilities.max(axis=1, initial=0)
            self._refuse(
                highest > 1, "a probability is {:.4g}, which is above 1", "Apply sigmoid to the logits", highest
            )
            return
        self._refuse(np.abs(sums - 1) > 1e-3, "the probabilities sum to {:.4g}, not 1", softmax, sums)
        if self.labels is not None:
            if not np.issubdtype(self.labels.dtype, np.integer):
                problem = f"the dtype is {self.labels.dtype}"
                raise TwinbudError(problem, where="labels", fix="Give integer class indices")
            unknown = (self.labels < 0) | (self.labels >= len(self.classes))
            known = f"0..{len(self.classes) - 1}"
            self._refuse(unknown, f"label {{}} is outside {known}", f"Give class indices in {known}", self.labels)

    @classmethod
    def from_logits(
        cls,
        logits: np.ndarray,
        *,
        paths: tuple[str, ...],
        classes: tuple[str, ...],
        labels: np.ndarray | None = None,
        patient_ids: tuple[str | None, ...] | None = None,
        task: Task | None = None,
        temperature: float = 1.0,
    ) -> Predictions:
        """Build predictions from float32 logits, one column for each output; probabilities are computed in float64.

        ``temperature`` divides the logits before they become probabilities; ``logits`` stay as they are.
        """
        probabilities = (task or SingleLabel(classes)).probabilities(logits / np.float32(temperature))
        return cls(
            paths=paths,
            labels=labels,
            probabilities=probabilities,
            classes=classes,
            patient_ids=patient_ids,
            logits=logits,
            task=task,
        )

    @property
    def asked(self) -> Task:
        """The task; one class an image where none is given."""
        return self.task or SingleLabel(self.classes)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Name of each column of the logits."""
        return self.asked.output_names

    def _refuse(self, bad: Any, problem: str, fix: str, values: np.ndarray | None = None) -> None:
        """Raise an error for the first image with ``bad``; its element of ``values`` fills the gap in ``problem``."""
        if bad.any():
            first = int(np.argmax(bad))
            shown = problem if values is None else problem.format(values[first])
            raise TwinbudError(shown, where=self.paths[first], fix=fix)

    @cached_property
    def predicted(self) -> np.ndarray:
        """(N,) int64 index of the predicted class, or of several labels (N, K) int64, 1 for each predicted one."""
        return self.asked.predicted(self.probabilities)

    @cached_property
    def confidence(self) -> np.ndarray:
        """(N,) float64 probability of the predicted class, where each image has one."""
        return self.probabilities[np.arange(len(self.predicted)), self.predicted]

    @property
    def accuracy(self) -> float:
        """The share of images classified correctly, in [0, 1], of predictions with labels."""
        assert self.labels is not None, "the images have labels"
        return self.asked.accuracy(self.predicted, self.labels)

    @cached_property
    def mistakes(self) -> np.ndarray:
        """(N,) float64 confidence of each wrong prediction, NaN where it is right, of predictions with labels."""
        assert self.labels is not None, "the images have labels"
        return self.asked.mistakes(self.probabilities, self.labels)

    def most_confident_mistakes(self, limit: int) -> np.ndarray:
        """Return the (M,) indices of at most ``limit`` wrongly classified images, the most confident first.

        Raises:
            TwinbudError: The labels are unknown.
        """
        if self.labels is None:
            raise TwinbudError("the images have no labels", where="labels", fix="Give labels to find mistakes")
        wrong = np.flatnonzero(~np.isnan(self.mistakes))
        return wrong[np.argsort(-self.mistakes[wrong], kind="stable")][:limit]


def _set_text(names: Sequence[str], is_chosen: np.ndarray) -> str:
    r"""Return the classes of a prediction set as ``a|b``; in a name, a bar is ``\|`` and a backslash ``\\``."""
    chosen = (name for name, holds in zip(names, is_chosen, strict=True) if holds)
    return SEPARATOR.join(name.replace("\\", "\\\\").replace(SEPARATOR, f"\\{SEPARATOR}") for name in chosen)


def write_predictions(path: Path, predictions: Predictions, *, logits: bool = False) -> None:
    """Write the CSV of ``prediction_rows`` as UTF-8, replacing ``path`` as a whole.

    Raises:
        TwinbudError: The disk is full, the folder cannot be written, or logits are requested but unknown.
    """
    write_csv(path, prediction_rows(predictions, logits=logits))


def read_predictions(path: Path, task: Task) -> Predictions:
    """Read the labelled predictions that ``write_predictions`` wrote: probabilities, without logits.

    Raises:
        TwinbudError: The file cannot be read, or lacks a column or a number.
    """
    names = [f"probability_{name}" for name in task.classes]
    cells = [row for _, row in read_cells(path, ("path", "label", *names), exact=("path", "label"))]
    try:
        probabilities = np.array([[float(row[name]) for name in names] for row in cells])
        labels = task.encode([row["label"] for row in cells]).numpy()
    except ValueError as error:
        fix = "Restore the file that 'twinbud' wrote"
        raise TwinbudError(f"the predictions cannot be read ({error})", where=str(path), fix=fix) from error
    paths = tuple(row["path"] for row in cells)
    return Predictions(paths=paths, labels=labels, probabilities=probabilities, classes=task.classes, task=task)


def prediction_rows(predictions: Predictions, *, logits: bool = False) -> Iterator[list[str]]:
    """Yield the cells of the CSV file, header first, then one row per image.

    Columns: ``path``, ``label`` (empty if unknown), ``prediction``, ``probability_CLASS`` of each class with 8
    significant digits; where they are known, ``set`` (the classes of the prediction set, as ``_set_text`` joins them)
    and ``ood`` (1 for an image unlike those that the network was made for, else 0); and, if requested, ``logit_NAME``
    of each output (a class, or what the task names) with 9 digits, which restore the float32 exactly.

    Raises:
        TwinbudError: Logits are requested but unknown.
    """
    classes, asked = predictions.classes, predictions.asked
    header = ["path", "label", "prediction", *(f"probability_{name}" for name in classes)]
    columns = [[[f"{value:.8g}" for value in row] for row in predictions.probabilities]]
    if predictions.sets is not None:
        header.append("set")
        columns.append([[_set_text(classes, row)] for row in predictions.sets])
    if predictions.is_novel is not None:
        header.append("ood")
        columns.append([[str(int(value))] for value in predictions.is_novel])
    if logits:
        if predictions.logits is None:
            fix = "Leave out --logits, or predict with the model again"
            raise TwinbudError("the predictions have no logits", where="--logits", fix=fix)
        header += [f"logit_{name}" for name in predictions.output_names]
        columns.append([[f"{value:.9g}" for value in row] for row in predictions.logits])
    yield header
    labels = [""] * len(predictions.paths) if predictions.labels is None else asked.texts(predictions.labels)
    predicted = asked.texts(predictions.predicted)
    for row, path in enumerate(predictions.paths):
        yield [path, labels[row], predicted[row], *(cell for part in columns for cell in part[row])]
