"""Several labels an image, each there or not: one sigmoid and one binary cross-entropy a label.

Targets are (N, C) float32: 1 there, 0 absent, NaN unknown, which neither the loss nor the metrics count; of mixed
images they lie between 0 and 1.

Shape legend: N samples, B batch, C labels, which are the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from twinbud.config.schema import Distillation
from twinbud.config.task import Aggregate, TaskName
from twinbud.data.findings import Findings, parse_findings
from twinbud.tasks.base import Task
from twinbud.tasks.binary import BinaryTask
from twinbud.tasks.formulas import f1_threshold

_NEEDS_CLASSES = "whose images have no single class"


@dataclass(frozen=True)
class MultiLabel(BinaryTask):
    """Several labels an image.

    Attributes:
        thresholds: From this probability on a label is predicted, one each; empty: 0.5 for all.
    """

    name: ClassVar[TaskName] = "multi-label"
    is_exclusive: ClassVar[bool] = False
    usage: ClassVar[tuple[str, ...]] = ("probabilities = model(image[None]).sigmoid()[0]",)
    unsupported: ClassVar[Mapping[Distillation, str]] = {
        "cs-kd": _NEEDS_CLASSES, "cs-kd-pair": _NEEDS_CLASSES, "tf-kd-reg": _NEEDS_CLASSES,
    }  # fmt: skip

    thresholds: tuple[float, ...] = ()

    @property
    def num_outputs(self) -> int:
        """One logit a label."""
        return len(self.classes)

    @property
    def decisive(self) -> np.ndarray:
        """The threshold of each label, (C,) float64."""
        return np.array(self.thresholds or (0.5,) * len(self.classes))

    def encode(self, labels: Sequence[str]) -> torch.Tensor:
        """Return the targets of texts of findings."""
        targets_NC = torch.zeros(len(labels), len(self.classes))
        for row, text in enumerate(labels):
            findings = parse_findings(text)
            for names, state in ((findings.present, 1.0), (findings.unknown, torch.nan)):
                targets_NC[row, [self.classes.index(name) for name in names]] = state
        return targets_NC

    def to_mix(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the targets; a label that is unknown in one of two mixed images is unknown."""
        return targets

    def _cross_entropy(
        self, logits_BK: torch.Tensor, targets: torch.Tensor, label_smoothing: float, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute the mean binary cross-entropy over the known labels of all images; 0 where none is known."""
        is_known_BK = ~targets.isnan()
        yes_BK = (1 - label_smoothing) * targets.nan_to_num() + label_smoothing / 2
        no_BK = 1 - yes_BK
        if weights is not None:
            no_BK, yes_BK = no_BK * weights[0], yes_BK * weights[1]
        losses_BK = -(yes_BK * F.logsigmoid(logits_BK) + no_BK * F.logsigmoid(-logits_BK))
        return (losses_BK * is_known_BK).sum() / is_known_BK.sum().clamp(min=1)

    def num_correct(self, logits_BK: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the sum over the images of the share of known labels that are right at a probability of 0.5."""
        is_known_BK = ~targets.isnan()
        is_right_BK = ((logits_BK > 0) == (targets > 0.5)) & is_known_BK
        return (is_right_BK.sum(dim=1) / is_known_BK.sum(dim=1).clamp(min=1)).sum()

    def counts(self, targets_N: torch.Tensor) -> torch.Tensor:
        """See ``Task``."""
        return (targets_N == 1).sum(dim=0)

    def class_weights(self, targets_N: torch.Tensor) -> torch.Tensor:
        """Return the weights (2, C) of absent and present labels, with which both count the same for each label."""
        counts_2C = torch.stack([(targets_N == 0).sum(dim=0), (targets_N == 1).sum(dim=0)]).double()
        weights_2C = counts_2C.sum(dim=0) / (2 * counts_2C)
        return torch.where(counts_2C > 0, weights_2C, 0.0).float()

    def sample_weights(self, targets_N: torch.Tensor) -> torch.Tensor:
        """Return the mean of the class weights of each image's known labels; 0 where none is known."""
        absent_C, present_C = self.class_weights(targets_N)
        weights_NC = torch.where(targets_N == 1, present_C, absent_C).masked_fill(targets_N.isnan(), torch.nan)
        weights_N = weights_NC.nanmean(dim=1).nan_to_num()
        return weights_N if weights_N.any() else torch.ones(len(targets_N))

    def prior_logits(self, targets_N: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the number of images that show a label, divided by that of the others, float64."""
        present_C, absent_C = ((targets_N == state).sum(dim=0).clamp(min=1).double() for state in (1, 0))
        return torch.log(present_C / absent_C)

    def binary_targets(self, targets_N: torch.Tensor) -> torch.Tensor | None:
        """Return the targets."""
        return targets_N

    def tensor_probabilities(self, logits_NK: torch.Tensor) -> torch.Tensor:
        """Return the sigmoid of each logit."""
        return logits_NK.sigmoid()

    def predicted(self, probabilities_NC: np.ndarray) -> np.ndarray:
        """Return (N, C) int64: 1 where a probability reaches the threshold of its label."""
        return (probabilities_NC >= self.decisive).astype(np.int64)

    def accuracy(self, predicted: np.ndarray, labels: np.ndarray) -> float:
        """Return the share of the known labels that are predicted right."""
        is_known_NC = ~np.isnan(labels)
        return float((predicted == labels)[is_known_NC].mean()) if is_known_NC.any() else 0.0

    def mistakes(self, probabilities_NC: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the highest confidence among the labels of each image that are predicted wrongly; NaN without one."""
        predicted_NC = self.predicted(probabilities_NC)
        confidence_NC = np.where(predicted_NC == 1, probabilities_NC, 1 - probabilities_NC)
        wrong_NC = (predicted_NC != labels) & ~np.isnan(labels)
        highest_N = np.where(wrong_NC, confidence_NC, -1.0).max(axis=1)
        return np.where(highest_N < 0, np.nan, highest_N)

    def texts(self, values: np.ndarray) -> list[str]:
        """Return the text of findings of each image."""
        return [
            Findings(
                *(
                    tuple(name for name, holds in zip(self.classes, states, strict=True) if holds)
                    for states in (row == 1, np.isnan(row.astype(np.float64)))
                )
            ).text
            for row in values
        ]

    def decided_by(self, examples: Callable[[], tuple[np.ndarray, np.ndarray]]) -> Task:
        """Choose for each label the threshold with the highest F1 on the examples (``f1_threshold``)."""
        probabilities_NC, labels_NC = examples()
        known_NC = ~np.isnan(labels_NC)
        thresholds = (
            f1_threshold(probabilities_NC[known_NC[:, k], k], labels_NC[known_NC[:, k], k] == 1)
            for k in range(len(self.classes))
        )
        return replace(self, thresholds=tuple(thresholds))

    def at_temperature(self, temperature: float) -> Task:
        """Return the task with thresholds that σ(z / T) reaches where σ(z) reaches those of this one."""
        with np.errstate(divide="ignore"):
            logits_C = np.log(self.decisive) - np.log1p(-self.decisive)
        return replace(self, thresholds=tuple((1 / (1 + np.exp(-logits_C / temperature))).tolist()))

    def aggregate(self, probabilities_NC: np.ndarray, how: Aggregate) -> np.ndarray:
        """Join the probabilities of each label by itself."""
        if how == "mean":
            return probabilities_NC.mean(axis=0)
        return probabilities_NC.max(axis=0) if how == "max" else 1 - (1 - probabilities_NC).prod(axis=0)

    def joined_label(self, labels: np.ndarray) -> Any:
        """Return what is there in any image, else what is absent in one, else unknown: (C,) float32."""
        shown_C, absent_C = (labels == 1).any(axis=0), (labels == 0).any(axis=0)
        return np.where(shown_C, 1.0, np.where(absent_C, 0.0, np.nan)).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """See ``Task``."""
        return {**super().to_json(), "thresholds": self.decisive.tolist()}
