"""Number of epochs and learning rate of each step, as pure functions."""

from __future__ import annotations

import math


def planned_epochs(epochs: int, min_steps: int, steps_per_epoch: int) -> int:
    """Return ``epochs``, or more if ``min_steps`` optimizer steps need more epochs; 0 stays 0."""
    return epochs and max(epochs, math.ceil(min_steps / steps_per_epoch))


def peak_learning_rate(learning_rate: float, batch_size: int) -> float:
    """Scale the learning rate, given for batch size 32, linearly with the batch size."""
    return learning_rate * batch_size / 32


def learning_rate_at(step: int, *, num_steps: int, warmup: float, peak: float, final: float) -> float:
    """Return the learning rate of a step: linear warm-up to ``peak`` and cosine decay to ``final``.

    Args:
        step: Completed optimizer steps, 0 ≤ step < num_steps.
        num_steps: Planned optimizer steps.
        warmup: Share of the steps with warm-up, in [0, 1].
        peak: Learning rate at the end of the warm-up.
        final: Learning rate of the last step.
    """
    warmup_steps = round(warmup * num_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps)
    return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2
