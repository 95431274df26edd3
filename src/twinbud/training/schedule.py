"""How many steps, and the learning rate at each of them; pure functions."""

from __future__ import annotations

import math


def planned_epochs(epochs: int, min_steps: int, steps_per_epoch: int) -> int:
    """``epochs``, or as many more as ``min_steps`` optimiser steps take."""
    return max(epochs, math.ceil(min_steps / steps_per_epoch))


def peak_learning_rate(learning_rate: float, batch_size: int) -> float:
    """The rate is stated at batch 32 and grows linearly with the batch."""
    return learning_rate * batch_size / 32


def learning_rate_at(step: int, *, num_steps: int, warmup: float, peak: float, final: float) -> float:
    """Linear warm-up to ``peak`` over the first share ``warmup`` of the steps, then a cosine down to ``final``.

    Args:
        step: Optimiser steps done so far, 0 ≤ step < num_steps.
        num_steps: Optimiser steps planned.
        warmup: Share of the steps, in [0, 1].
        peak: Learning rate reached at the end of the warm-up.
        final: Learning rate of the last step.
    """
    warmup_steps = round(warmup * num_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps)
    return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2
