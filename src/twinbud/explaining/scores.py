"""What a map explains: the log-odds of a label, which no constant added to all logits can change."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from twinbud.tasks.base import Task


def log_odds(task: Task, logits_BK: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Compute log(p / (1 - p)) of a label's probability p.

    Of several labels this is the logit itself. Of exclusive classes it is the logit less the log-sum-exp of the others:
    why this class, and not the one that comes next.

    Args:
        task: What the logits mean.
        logits_BK: B images, K outputs.
        labels_B: int64 index of each image's label among the classes.

    Returns:
        (B,), differentiable.

    >>> from twinbud.tasks.single import SingleLabel
    >>> log_odds(SingleLabel(("a", "b")), torch.tensor([[1.0, 4.0]]), torch.tensor([1]))
    tensor([3.])
    """
    scores_BC = _grades(logits_BK) if task.has_order else logits_BK
    chosen_B1 = scores_BC.gather(1, labels_B[:, None])
    if not task.is_exclusive:
        return chosen_B1[:, 0]
    others_BC = scores_BC.scatter(1, labels_B[:, None], -torch.inf)
    return chosen_B1[:, 0] - others_BC.logsumexp(dim=1)


def _grades(steps_BK: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of each grade, (B, C); see ``Ordinal.probabilities``."""
    at_least_BC = F.pad(F.logsigmoid(steps_BK).cumsum(dim=1), (1, 0))
    return at_least_BC + F.pad(F.logsigmoid(-steps_BK), (0, 1))
