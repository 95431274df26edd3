"""What a model said about each image, and the CSV it becomes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from twinbud.core.csv_files import write_csv
from twinbud.core.errors import TwinbudError


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Class probabilities of N images over K classes, with the truth where it is known.

    Raises:
        TwinbudError: For lengths that disagree, a label that is no class index, or probabilities that are
            not finite, not in [0, 1] or do not sum to 1 (within 1e-3). The image is named.
    """

    paths: tuple[str, ...]
    """Where each image came from, N of them."""

    labels: np.ndarray | None
    """(N,) int64 class indices; None where the truth is unknown."""

    probabilities: np.ndarray
    """(N, K) float64, each row summing to 1."""

    classes: tuple[str, ...]
    """Names of the K classes, in the order of the columns."""

    patient_ids: tuple[str | None, ...] | None = None
    """Whom each image shows, None for an image without an id; None if there are no ids at all."""

    def __post_init__(self) -> None:
        shape = (len(self.paths), len(self.classes))
        if self.probabilities.shape != shape:
            raise TwinbudError(f"probabilities of shape {shape}", got=str(self.probabilities.shape))
        for name, values in (("labels", self.labels), ("patient_ids", self.patient_ids)):
            if values is not None and len(values) != len(self.paths):
                raise TwinbudError(f"{len(self.paths)} {name}, one an image", got=str(len(values)))
        running_means = self.probabilities.sum(axis=1)
        self._refuse(
            ~np.isfinite(self.probabilities).all(axis=1),
            "finite probabilities",
            "nan or inf",
            "Check the weights and the learning rate",
        )
        outside = (self.probabilities < 0).any(axis=1) | (np.abs(running_means - 1) > 1e-3)
        self._refuse(outside, "probabilities in [0, 1] that sum to 1", "others", "Pass the logits through softmax")
        if self.labels is not None:
            if not np.issubdtype(self.labels.dtype, np.integer):
                raise TwinbudError("labels that are whole class indices", got=str(self.labels.dtype))
            unknown = (self.labels < 0) | (self.labels >= len(self.classes))
            self._refuse(unknown, f"a label in 0..{len(self.classes) - 1}", "another number", None)

    def _refuse(self, bad: Any, expected: str, got: str, fix: str | None) -> None:
        if bad.any():
            raise TwinbudError(expected, got=got, where=self.paths[int(np.argmax(bad))], fix=fix)

    @cached_property
    def predicted(self) -> np.ndarray:
        """(N,) int64 index of the most probable class, the first of equals."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def confidence(self) -> np.ndarray:
        """(N,) float64 probability of the predicted class."""
        return self.probabilities.max(axis=1)

    def most_confident_mistakes(self, limit: int) -> np.ndarray:
        """(M,) indices of at most `limit` wrongly classified images, the most confident first.

        Raises:
            TwinbudError: If the truth is unknown.
        """
        if self.labels is None:
            raise TwinbudError("images with known classes", got="images without labels")
        wrong = np.flatnonzero(self.predicted != self.labels)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:limit]


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write a CSV with a row an image: path, label, prediction, and ``probability_<class>`` for each class.

    The label is blank where unknown; probabilities keep 8 significant digits. UTF-8; replaces `path` whole.

    Raises:
        TwinbudError: If the disk is full or the folder may not be written.
    """
    write_csv(path, prediction_rows(predictions))


def prediction_rows(predictions: Predictions) -> Iterator[list[str]]:
    """The cells of that CSV, header first."""
    classes = predictions.classes
    yield ["path", "label", "prediction", *(f"probability_{name}" for name in classes)]
    for row, source in enumerate(predictions.paths):
        label = "" if predictions.labels is None else classes[predictions.labels[row]]
        probabilities = (f"{value:.8g}" for value in predictions.probabilities[row])
        yield [source, label, classes[predictions.predicted[row]], *probabilities]
