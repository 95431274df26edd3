"""Tasks each of whose outputs is the log-odds of one question, answered by yes or no.

Shape legend: B batch, K outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from twinbud.tasks.base import Task
from twinbud.tasks.formulas import binary_curvature, binary_divergence, binary_mean_logits


@dataclass(frozen=True)
class BinaryTask(Task):
    """Soft targets of a task with one sigmoid an output: each output is compared by itself."""

    def divergence(
        self,
        student_BK: torch.Tensor,
        targets_BK: torch.Tensor,
        temperature: float,
        *,
        targets_are_probabilities: bool = False,
    ) -> torch.Tensor:
        """See ``binary_divergence``; soft targets are known for every output, also where the label is not."""
        assert not targets_are_probabilities, "no supported variant gives probabilities"
        return binary_divergence(student_BK, targets_BK, temperature)

    def curvature(self, logits_BK: torch.Tensor, noise_BK: torch.Tensor, temperature: float) -> torch.Tensor:
        """See ``binary_curvature``."""
        return binary_curvature(logits_BK, noise_BK, temperature)

    def mean_logits(self, one_BK: torch.Tensor, other_BK: torch.Tensor, temperature: float) -> torch.Tensor:
        """See ``binary_mean_logits``."""
        return binary_mean_logits(one_BK, other_BK, temperature)
