"""Equations 1-5 against a plain float64 reference."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from timm.loss.cross_entropy import LabelSmoothingCrossEntropy

from twinbud.training.losses import total_loss


def reference(
    student: list[list[float]], auxiliary: list[list[float]], labels: list[int], alpha: float, tau: float, ce_tau: float
) -> tuple[float, float, float]:
    """Eqs. 1-5 in plain Python: a sum over classes, a mean over the batch."""

    def softmax(logits: list[float], temperature: float) -> list[float]:
        exponentials = [math.exp(z / temperature) for z in logits]
        return [e / sum(exponentials) for e in exponentials]

    skd = ce = 0.0
    for z, z_auxiliary, label in zip(student, auxiliary, labels, strict=True):
        p, p_auxiliary = softmax(z, tau), softmax(z_auxiliary, tau)
        skd += sum(q * math.log(q / r) for q, r in zip(p_auxiliary, p, strict=True)) / len(labels)
        ce -= math.log(softmax(z, ce_tau)[label]) / len(labels)
    return alpha * ce + (1 - alpha) * tau**2 * skd, ce, skd


@pytest.mark.parametrize("tau", [1.0, 3.0, 4.0])
@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("ce_at_tau", [False, True])
def test_the_total_loss_is_equation_5(alpha: float, tau: float, ce_at_tau: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    student, auxiliary = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64) * 3
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    ce_tau = tau if ce_at_tau else 1.0
    found = total_loss(student, auxiliary, labels, alpha=alpha, temperature=tau, ce_temperature=ce_tau)
    total, ce, skd = reference(student.tolist(), auxiliary.tolist(), labels.tolist(), alpha, tau, ce_tau)
    assert found.skd is not None
    assert float(found.total) == pytest.approx(total, abs=1e-12)
    assert float(found.ce) == pytest.approx(ce, abs=1e-12)
    assert float(found.skd) == pytest.approx(skd, abs=1e-12)


def test_a_hand_worked_batch() -> None:
    """At τ = 1: p = (1/2, 1/2), p′ = (3/4, 1/4), so L_skd = ¾ ln 1.5 + ¼ ln 0.5 and L_ce = ln 2."""
    student, auxiliary = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    losses = total_loss(student, auxiliary, torch.tensor([0]), alpha=0.5, temperature=1.0)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(losses.total) == pytest.approx(0.5 * math.log(2) + 0.5 * expected, abs=1e-6)


def test_without_an_auxiliary_the_loss_is_cross_entropy_whole_not_alpha_of_it() -> None:
    student, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    losses = total_loss(student, None, labels, alpha=0.6, temperature=4.0)
    assert torch.equal(losses.total, F.cross_entropy(student, labels))
    assert losses.skd is None


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_labels_weigh_the_cross_entropy_of_their_classes(smoothing: float) -> None:
    """λ CE(y) + (1 − λ) CE(y′), the form that Zhang et al. (2018) implement, with smoothing on either side."""
    student = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, other, share = torch.tensor([0, 1, 2, 0]), torch.tensor([2, 2, 1, 0]), 0.3
    labels = (1 - share) * F.one_hot(one, 3).float() + share * F.one_hot(other, 3).float()
    found = total_loss(student, None, labels, alpha=0.6, temperature=4.0, label_smoothing=smoothing)
    ce, ce_other = (F.cross_entropy(student, y, label_smoothing=smoothing) for y in (one, other))
    assert float(found.total) == pytest.approx(float((1 - share) * ce + share * ce_other), abs=1e-7)


def test_label_smoothing_is_timms_and_leaves_soft_targets_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    student, targets = torch.randn(2, 4, 3, generator=generator)
    labels = torch.tensor([0, 1, 2, 0])
    plain, smooth = (
        total_loss(student, targets, labels, alpha=0.6, temperature=4.0, label_smoothing=value) for value in (0.0, 0.1)
    )
    torch.testing.assert_close(smooth.ce, LabelSmoothingCrossEntropy(0.1)(student, labels))
    assert smooth.skd is not None
    assert plain.skd is not None
    assert torch.equal(smooth.skd, plain.skd)
    torch.testing.assert_close(smooth.total, 0.6 * smooth.ce + 0.4 * 16 * smooth.skd)


def test_no_gradient_reaches_the_auxiliary() -> None:
    student, auxiliary = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    total_loss(student, auxiliary, torch.tensor([0, 1, 2, 0]), alpha=0.0, temperature=4.0).total.backward()
    assert auxiliary.grad is None
    assert student.grad is not None
    assert bool((student.grad != 0).any())


def test_logits_of_low_precision_are_compared_in_float32() -> None:
    student, auxiliary = (torch.randn(4, 3).bfloat16() for _ in range(2))
    losses = total_loss(student, auxiliary, torch.tensor([0, 1, 2, 0]), alpha=0.5, temperature=4.0)
    assert losses.total.dtype == torch.float32
