"""The soft targets of every variant against a reference in plain Python and numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from helpers.soft_targets import (
    EPOCHS,
    LABELS,
    NUM_CLASSES,
    OBJECTIVE,
    PARTNERS,
    VARIANTS,
    Lookup,
    frozen_teacher,
    lookups,
    pixels,
    step_of,
    take,
)
from twinbud.config.schema import Distillation
from twinbud.models.student_pair import StudentPair
from twinbud.tasks.formulas import softmax_mean_logits
from twinbud.training.target_formulas import update_similarity, virtual_teacher


class Reference:
    """The table of docs/method.md in plain Python."""

    def __init__(self, distillation: Distillation) -> None:
        self.distillation = distillation
        self.similarity = [[float(i == j) for j in range(NUM_CLASSES)] for i in range(NUM_CLASSES)]
        self.memory: dict[int, list[float]] = {}
        teacher = frozen_teacher(distillation)
        self.teacher: list[list[float]] = teacher.logits.tolist() if teacher else []

    def loss(self, student: list[list[float]], auxiliary: list[list[float]] | None, rows: list[int]) -> float:
        """The batch's total loss (eq. 5), after which the memories take in the batch."""
        tau = 1.0 if self.distillation == "tf-kd-reg" else OBJECTIVE.temperature
        total = 0.0
        for row in rows:
            target = self.target(auxiliary, row)
            p = softmax(student[row], tau)
            divergence = sum(q * math.log(q / r) for q, r in zip(target, p, strict=True) if q)
            ce = -math.log(softmax(student[row], 1.0)[LABELS[row]])
            total += (OBJECTIVE.alpha * ce + (1 - OBJECTIVE.alpha) * tau**2 * divergence) / len(rows)
        self.update(student, auxiliary, rows)
        return total

    def target(self, auxiliary: list[list[float]] | None, row: int) -> list[float]:
        tau, label = OBJECTIVE.temperature, int(LABELS[row])
        if self.distillation == "teacher":
            return softmax(self.teacher[row], tau)
        if auxiliary is None:
            d = [0.99 if k == label else 0.01 / (NUM_CLASSES - 1) for k in range(NUM_CLASSES)]
            return softmax(d, 20.0)
        return {
            "cs-kd": self.similarity[label],
            "cs-kd-pair": softmax(auxiliary[int(PARTNERS[row])], tau),
            "tf-kd": softmax(self.memory.get(row, auxiliary[row]), tau),
            "skd+teacher": mean(softmax(auxiliary[row], tau), softmax((self.teacher or auxiliary)[row], tau)),
        }.get(self.distillation, softmax(auxiliary[row], tau))

    def update(self, student: list[list[float]], auxiliary: list[list[float]] | None, rows: list[int]) -> None:
        self.memory |= {row: student[row] for row in rows}
        if auxiliary is None:
            return
        for k in {int(LABELS[row]) for row in rows}:
            members = [softmax(auxiliary[row], OBJECTIVE.temperature) for row in rows if int(LABELS[row]) == k]
            mean = [sum(column) / len(members) for column in zip(*members, strict=True)]
            self.similarity[k] = [0.9 * s + 0.1 * m for s, m in zip(self.similarity[k], mean, strict=True)]


def mean(one: list[float], other: list[float]) -> list[float]:
    return [(p + q) / 2 for p, q in zip(one, other, strict=True)]


def softmax(logits: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(z / temperature) for z in logits]
    return [e / sum(exponentials) for e in exponentials]


@pytest.mark.parametrize("distillation", VARIANTS)
@pytest.mark.parametrize("deferred", [False, True], ids=["known at once", "read later"])
def test_each_variants_loss_is_the_references_for_three_epochs(distillation: Distillation, deferred: bool) -> None:
    """S moves far at each step, so that what is remembered differs from what S would say now."""
    student_pair, reference = lookups(distillation), Reference(distillation)
    step = step_of(student_pair, distillation)
    step.optimizer.deferred = deferred
    for rows in (rows for epoch in EPOCHS for rows in epoch):
        student, auxiliary = (
            student_pair.student.logits.tolist(),
            student_pair.auxiliary and student_pair.auxiliary.logits.tolist(),
        )
        assert take(step, rows) == pytest.approx(reference.loss(student, auxiliary, rows), abs=1e-12)


def hand_worked(distillation: Distillation, student: list[float], auxiliary: list[list[float]] | None) -> float:
    """The distillation loss of sample 0, of class 0 of 2, with sample 1 for its partner, at τ = 2."""
    student_pair = StudentPair(
        student=Lookup(torch.tensor([student, student], dtype=torch.float64)),
        auxiliary=None
        if auxiliary is None
        else Lookup(torch.tensor(auxiliary, dtype=torch.float64)).requires_grad_(False),
        frozen=True,
    )
    step = step_of(student_pair, distillation, temperature=2.0)
    row, partner = torch.tensor([0]), torch.tensor([1])
    losses = step(pixels(row), torch.tensor([0]), 0.0, row, pixels(partner)).losses
    assert losses.skd is not None
    weight = 1.0 if distillation == "tf-kd-reg" else 4.0
    assert losses.total.item() == pytest.approx(0.6 * losses.ce.item() + 0.4 * weight * losses.skd.item(), abs=1e-12)
    return losses.skd.item()


TARGET = [2 * math.log(3), 0.0]
"""At τ = 2 it softens to (3/4, 1/4), and equal logits to (1/2, 1/2)."""
DIVERGENCE = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)


def test_cs_kd_pair_on_hand_worked_numbers() -> None:
    """What S′ says of the sample itself must not matter; cross-entropy is the sample's: both logits equal, so ln 2."""
    assert hand_worked("cs-kd-pair", [0.0, 0.0], [[-50.0, 50.0], TARGET]) == pytest.approx(DIVERGENCE, abs=1e-12)


def test_tf_kd_self_on_hand_worked_numbers() -> None:
    assert hand_worked("tf-kd-self", [0.0, 0.0], [TARGET, [-50.0, 50.0]]) == pytest.approx(DIVERGENCE, abs=1e-12)


def test_tf_kd_reg_on_hand_worked_numbers() -> None:
    """u = (e^0.0495, e^0.0005) / sum = (0.512248, 0.487752); S says (3/4, 1/4), which no temperature softens."""
    expected = 0.512248 * math.log(0.512248 / 0.75) + 0.487752 * math.log(0.487752 / 0.25)
    assert hand_worked("tf-kd-reg", [math.log(3), 0.0], None) == pytest.approx(expected, abs=1e-6)
    assert virtual_teacher(2)[1].tolist() == pytest.approx([0.487752, 0.512248], abs=1e-6)


def test_the_similarity_starts_as_the_identity_and_a_class_not_in_the_batch_keeps_its_row() -> None:
    step = step_of(lookups("cs-kd"), "cs-kd")
    similarity = step.targets.state["similarity"]
    assert torch.equal(similarity, torch.eye(NUM_CLASSES, dtype=torch.float64))
    take(step, [0, 1, 2])
    assert similarity[1].tolist() == [0.0, 1.0, 0.0]
    assert all(0 < float(similarity[k, k]) < 1 for k in (0, 2))
    torch.testing.assert_close(similarity.sum(dim=1), torch.ones(NUM_CLASSES, dtype=torch.float64))


def test_the_similarity_moves_a_tenth_of_the_way_to_the_batchs_mean() -> None:
    p = torch.tensor([[0.5, 0.5], [0.1, 0.9]])
    after = update_similarity(torch.eye(2), p, torch.tensor([1, 1]))
    torch.testing.assert_close(after, torch.tensor([[1.0, 0.0], [0.03, 0.97]]))


def test_the_mean_of_two_softened_distributions_stays_finite_where_one_is_zero() -> None:
    sure, unsure = torch.tensor([[400.0, 0.0, 0.0]]), torch.zeros(1, 3)
    mean = softmax_mean_logits(sure, unsure, 2.0)
    torch.testing.assert_close((mean / 2.0).softmax(1), torch.tensor([[2 / 3, 1 / 6, 1 / 6]]))
