"""Mixup and CutMix: their draws, the mixed images and the labels that go with them."""

from __future__ import annotations

import pytest
import torch
from timm.data.mixup import mixup_target

from twinbud.data.mixing import Mixing, draw_mixing, inside_boxes, mix

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


def images(count: int = 4, size: int = 10) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def one_hot(*labels: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(labels), 3).float()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_the_mixing_of_a_sample_depends_on_seed_epoch_and_sample_alone(mixup: float, cutmix: float) -> None:
    few, many = (draw_mixing(0, 3, count, mixup=mixup, cutmix=cutmix) for count in (4, 40))
    assert torch.equal(few.box_N4, many.box_N4[:4])
    assert torch.equal(few.weight_N, many.weight_N[:4])
    for seed, epoch in ((0, 4), (1, 3)):
        other = draw_mixing(seed, epoch, 4, mixup=mixup, cutmix=cutmix)
        assert not (torch.equal(few.box_N4, other.box_N4) and torch.equal(few.weight_N, other.weight_N))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixup_weights_follow_the_beta_distribution(alpha: float) -> None:
    """Mean 1/2 and variance 1 / (4 (2 α + 1)), of 20,000 draws; the box is the whole image."""
    mixing = draw_mixing(0, 1, 20_000, mixup=alpha, cutmix=0.0)
    assert float(mixing.weight_N.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(mixing.weight_N.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    assert torch.equal(mixing.box_N4, WHOLE.expand(20_000, 4))


def test_cutmix_replaces_a_square_that_the_border_may_clip() -> None:
    mixing = draw_mixing(0, 1, 2000, mixup=0.0, cutmix=1.0)
    left, top, right, bottom = mixing.box_N4.T
    assert bool((mixing.weight_N == 1).all())
    assert float(mixing.box_N4.min()) == 0.0
    assert float(mixing.box_N4.max()) == 1.0
    inside = (left > 0) & (top > 0) & (right < 1) & (bottom < 1)
    assert int(inside.sum()) > 100
    torch.testing.assert_close((right - left)[inside], (bottom - top)[inside], rtol=0, atol=1e-6)


def test_with_both_half_of_the_samples_get_each() -> None:
    is_cut = (draw_mixing(0, 1, 2000, mixup=0.4, cutmix=1.0).box_N4 != WHOLE).any(dim=1)
    assert float(is_cut.float().mean()) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_mixup_labels_are_those_of_timm(weight: float) -> None:
    """In a batch of two, the image before is the other one, which timm's order is too; weights are of the other."""
    labels = torch.tensor([2, 0])
    mixing = Mixing(WHOLE.expand(2, 4), torch.full((2,), weight))
    mixed, mixed_labels = mix(images(2), one_hot(2, 0), mixing)
    expected = mixup_target(labels, 3, lam=1 - weight, smoothing=0.0)
    torch.testing.assert_close(mixed_labels, expected)
    torch.testing.assert_close(mixed, (1 - weight) * images(2) + weight * images(2).flip(0))


def test_cutmix_labels_count_pixels() -> None:
    """Columns 2 to 6 and rows 5 to 10 of 10: the other image has 4 · 5 of 100 pixels."""
    mixing = Mixing(torch.tensor([[0.2, 0.5, 0.6, 1.0]]).expand(4, 4), torch.ones(4))
    mixed, labels = mix(images(), one_hot(0, 1, 2, 0), mixing)
    expected = images().clone()
    expected[:, :, 5:10, 2:6] = images()[[3, 0, 1, 2]][:, :, 5:10, 2:6]
    assert torch.equal(mixed, expected)
    torch.testing.assert_close(
        labels, torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.8, 0.0], [0.0, 0.2, 0.8], [0.8, 0.0, 0.2]])
    )


def test_a_batch_of_one_is_not_mixed() -> None:
    mixed, labels = mix(images(1), one_hot(1), draw_mixing(0, 1, 1, mixup=0.4, cutmix=1.0))
    assert torch.equal(mixed, images(1))
    assert torch.equal(labels, one_hot(1))


def test_a_box_covers_the_pixels_whose_centers_it_holds() -> None:
    inside = inside_boxes(torch.tensor([[0.0, 0.12, 0.5, 0.13], [0.3, 0.3, 0.3, 0.3]]), 4)
    assert inside[0, 0].tolist() == [[1, 1, 0, 0], [0] * 4, [0] * 4, [0] * 4]
    assert int(inside[1].sum()) == 0
