"""Networks whose logits are tables, and training steps of every variant with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import torch
from torch import nn

from twinbud.config.schema import TEACHER_TARGETS, Distillation
from twinbud.models.student_pair import StudentPair
from twinbud.training.train_step import Objective, TrainingStep

VARIANTS: tuple[Distillation, ...] = get_args(Distillation)
NUM_SAMPLES, NUM_CLASSES = 5, 3
LABELS = torch.tensor([0, 2, 2, 0, 1])
EPOCHS = [[[0, 1, 2], [3, 4]], [[4, 2, 0], [1, 3]], [[3, 0, 1], [2, 4]]]
"""Sample numbers of two batches an epoch."""
PARTNERS = torch.tensor([3, 2, 1, 0, 4])
WITHOUT_AUXILIARY = ("tf-kd-reg", "teacher")
NOBODY = tuple((variant, "auxiliary") for variant in WITHOUT_AUXILIARY)
"""The variants without an auxiliary."""
OBJECTIVE = Objective(alpha=0.6, beta=0.9, temperature=3.0, ce_temperature=1.0, clip_norm=None, bf16=False)


class Lookup(nn.Module):
    """A network whose logits are its parameters: an image of one pixel says which row."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.num_classes = logits.shape[1]
        self.logits = nn.Parameter(logits.clone())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[images[:, 0, 0, 0].long()]


def lookups(distillation: Distillation) -> StudentPair:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, NUM_SAMPLES, NUM_CLASSES, generator=generator, dtype=torch.float64) * 3
    auxiliary = None if distillation in WITHOUT_AUXILIARY else Lookup(logits[1]).requires_grad_(False)
    return StudentPair(student=Lookup(logits[0]), auxiliary=auxiliary, frozen=distillation == "tf-kd-self")


def frozen_teacher(distillation: Distillation) -> Lookup | None:
    if distillation not in TEACHER_TARGETS:
        return None
    logits = torch.randn(NUM_SAMPLES, NUM_CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Lookup(3 * logits).requires_grad_(False)


def step_of(student_pair: StudentPair, distillation: Distillation, **changes: Any) -> TrainingStep:
    objective = replace(OBJECTIVE, distillation=distillation, **changes)
    return TrainingStep(
        student_pair,
        objective,
        weight_decay=0.05,
        steps_per_epoch=2,
        num_samples=NUM_SAMPLES,
        teacher=frozen_teacher(distillation),
    )


def pixels(rows: torch.Tensor) -> torch.Tensor:
    return rows.double().view(-1, 1, 1, 1)


def take(step: TrainingStep, rows: list[int], learning_rate: float = 0.1) -> float:
    numbers = torch.tensor(rows)
    result = step(pixels(numbers), LABELS[numbers], learning_rate, numbers, pixels(PARTNERS[numbers]))
    return result.losses.total.item()
