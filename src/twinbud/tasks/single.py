"""One class an image: softmax and cross-entropy, as in the paper.

Shape legend: N samples, B batch, K classes, which are the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from twinbud.config.task import TaskName
from twinbud.tasks.base import Task
from twinbud.tasks.formulas import softmax_curvature, softmax_divergence, softmax_mean_logits


@dataclass(frozen=True)
class SingleLabel(Task):
    """One class an image, without an order of the classes."""

    name: ClassVar[TaskName] = "single"

    @property
    def num_outputs(self) -> int:
        """One logit a class."""
        return len(self.classes)

    def _cross_entropy(
        self, logits_BK: torch.Tensor, targets: torch.Tensor, label_smoothing: float, weights: torch.Tensor | None
    ) -> torch.Tensor:
        return F.cross_entropy(logits_BK, targets, weight=weights, label_smoothing=label_smoothing)

    def divergence(
        self,
        student_BK: torch.Tensor,
        targets_BK: torch.Tensor,
        temperature: float,
        *,
        targets_are_probabilities: bool = False,
    ) -> torch.Tensor:
        """See ``softmax_divergence``."""
        return softmax_divergence(
            student_BK, targets_BK, temperature, targets_are_probabilities=targets_are_probabilities
        )

    def curvature(self, logits_BK: torch.Tensor, noise_BK: torch.Tensor, temperature: float) -> torch.Tensor:
        """See ``softmax_curvature``."""
        return softmax_curvature(logits_BK, noise_BK, temperature)

    def mean_logits(self, one_BK: torch.Tensor, other_BK: torch.Tensor, temperature: float) -> torch.Tensor:
        """See ``softmax_mean_logits``."""
        return softmax_mean_logits(one_BK, other_BK, temperature)

    def num_correct(self, logits_BK: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See ``Task``."""
        labels_B = targets.argmax(dim=1) if targets.is_floating_point() else targets
        return (logits_BK.argmax(dim=1) == labels_B).sum()

    def prior_logits(self, targets_N: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of each class's share of the images, float64."""
        counts_C = self.counts(targets_N).clamp(min=1).double()
        return torch.log(counts_C / counts_C.sum())

    def tensor_probabilities(self, logits_NK: torch.Tensor) -> torch.Tensor:
        """Return the softmax."""
        return logits_NK.softmax(dim=1)

    def predicted(self, probabilities_NC: np.ndarray) -> np.ndarray:
        """Return the index of the most probable class, the first of equals."""
        return probabilities_NC.argmax(axis=1)

    def to_json(self) -> dict[str, Any]:
        """See ``Task``."""
        return {}


SINGLE_LABEL = SingleLabel(())
"""The losses of this task, where class names do not matter."""
