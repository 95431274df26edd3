"""Grades with an order: CORN, conditional ordinal regression (Shi, Cao & Raschka, Pattern Anal. Appl. 2023).

Output k (of K = C - 1) is the log-odds that the grade is above k, given that it is at least k. The probability of a
grade is the product of these conditional probabilities, so that predictions are consistent: P(above k) never rises.

Shape legend: N samples, B batch, C grades, K = C - 1 outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from twinbud.config.schema import Distillation
from twinbud.config.task import TaskName
from twinbud.tasks.binary import BinaryTask

_NEEDS_CLASSES = "whose outputs are steps between grades, not classes"


@dataclass(frozen=True)
class Ordinal(BinaryTask):
    """Grades, from the lowest to the highest."""

    name: ClassVar[TaskName] = "ordinal"
    has_order: ClassVar[bool] = True
    usage: ClassVar[tuple[str, ...]] = (
        "above = model(image[None]).sigmoid().cumprod(dim=-1)[0]",
        "probabilities = torch.cat([torch.ones(1), above]) - torch.cat([above, torch.zeros(1)])",
    )
    unsupported: ClassVar[Mapping[Distillation, str]] = {"cs-kd": _NEEDS_CLASSES, "tf-kd-reg": _NEEDS_CLASSES}

    @property
    def num_outputs(self) -> int:
        """One logit for each step between two grades."""
        return len(self.classes) - 1

    @property
    def output_names(self) -> tuple[str, ...]:
        """``above_A`` for each grade but the highest."""
        return tuple(f"above_{name}" for name in self.classes[:-1])

    def _cross_entropy(
        self, logits_BK: torch.Tensor, targets: torch.Tensor, label_smoothing: float, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute the CORN loss: output k learns from the images whose grade is at least k.

        It is the sum over outputs and images, divided by the number of pairs that it is over. A mixed image counts in
        each subset by its share.
        """
        num_classes = len(self.classes)
        q_BC = targets if targets.is_floating_point() else F.one_hot(targets, num_classes).to(logits_BK.dtype)
        q_BC = (1 - label_smoothing) * q_BC + label_smoothing / num_classes
        q_BC = q_BC if weights is None else q_BC * weights
        above_BK = q_BC.flip(1).cumsum(1).flip(1)[:, 1:]
        here_BK = q_BC[:, :-1]
        losses_BK = above_BK * F.logsigmoid(logits_BK) + here_BK * F.logsigmoid(-logits_BK)
        return -losses_BK.sum() / (above_BK + here_BK).sum()

    def num_correct(self, logits_BK: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See ``Task``."""
        labels_B = targets.argmax(dim=1) if targets.is_floating_point() else targets
        above_BK = torch.sigmoid(logits_BK.detach()).cumprod(dim=1)
        return ((above_BK > 0.5).sum(dim=1) == labels_B).sum()

    def prior_logits(self, targets_N: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the number of images above each grade, divided by that of the grade, float64."""
        counts_C = self.counts(targets_N).clamp(min=1).double()
        return torch.log(counts_C.flip(0).cumsum(0).flip(0)[1:] / counts_C[:-1])

    def binary_targets(self, targets_N: torch.Tensor) -> torch.Tensor | None:
        """Return whether each image is above each grade; NaN where it is below that grade."""
        steps_K = torch.arange(self.num_outputs)
        above_NK = (targets_N[:, None] > steps_K).float()
        return above_NK.masked_fill(targets_N[:, None] < steps_K, torch.nan)

    def tensor_probabilities(self, logits_NK: torch.Tensor) -> torch.Tensor:
        """Return P(at least k) (1 - P(above k | at least k)) for each grade k.

        A product, because the difference P(at least k) - P(above k) loses the digits of a probability near 0.
        """
        # one product after the other: ONNX has no cumulative product before its version 26
        at_least = list(accumulate(logits_NK.sigmoid().unbind(dim=1), torch.mul))
        at_least_NC = F.pad(torch.stack(at_least, dim=1), (1, 0), value=1.0)
        not_above_NC = F.pad((-logits_NK).sigmoid(), (0, 1), value=1.0)
        return at_least_NC * not_above_NC

    def predicted(self, probabilities_NC: np.ndarray) -> np.ndarray:
        """Return the median grade: the number of grades that the image is above with a probability over one half."""
        above_NK = 1 - probabilities_NC.cumsum(axis=1)[:, :-1]
        return (above_NK > 0.5).sum(axis=1)

    def joined_label(self, labels: np.ndarray) -> Any:
        """Return the highest grade of the patient's images."""
        return int(labels.max())
