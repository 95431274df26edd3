"""What ``--balance`` does about classes of different size: weights, a weighted sampler, or logit adjustment.

Shape legend: N samples.
"""

from __future__ import annotations

import numpy as np
import torch

from twinbud.config.task import Balance
from twinbud.core.rng import numpy_stream
from twinbud.tasks.base import UNBALANCED, Balancing, Task


def balance_loss(balance: Balance, task: Task, targets_N: torch.Tensor) -> Balancing:
    """Return what ``balance`` changes in the loss of training images with these targets, on their device."""
    if balance == "weights":
        return Balancing(weights=task.class_weights(targets_N.cpu())).to(targets_N.device)
    if balance == "logit-adjusted":
        return Balancing(shift=task.prior_logits(targets_N.cpu()).float()).to(targets_N.device)
    return UNBALANCED


def draw_balanced_samples(task: Task, targets_N: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """Draw N samples with replacement, each with a probability in proportion to ``Task.sample_weights``.

    Args:
        task: Knows the classes of the samples.
        targets_N: Targets of the samples, on any device.
        seed: Seed of the stream ``sampler``.
        epoch: From 1.

    Returns:
        (N,) int64 sample numbers on the device of the targets; a pure function of targets, seed and epoch.
    """
    shares_N = task.sample_weights(targets_N.cpu()).double().numpy()
    drawn_N = numpy_stream("sampler", seed, epoch).choice(
        len(shares_N), size=len(shares_N), p=shares_N / shares_N.sum()
    )
    return torch.from_numpy(drawn_N.astype(np.int64)).to(targets_N.device)
