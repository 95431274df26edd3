"""Each sample's partner: another of its class, drawn anew in each epoch."""

from __future__ import annotations

import torch

from twinbud.training.same_class_pairs import draw_same_class_pairs

LABELS = torch.tensor([2, 0, 0, 1, 2, 0, 2, 0, 2, 4, 2])
ALONE = (3, 9)
"""The only samples of classes 1 and 4; class 3 has none."""


def test_a_partner_is_another_sample_of_the_class_and_one_alone_has_itself() -> None:
    for epoch in range(1, 50):
        partners = draw_same_class_pairs(LABELS, seed=0, epoch=epoch)
        assert partners.dtype == torch.int64
        assert torch.equal(LABELS[partners], LABELS)
        assert [i for i in range(len(LABELS)) if partners[i] == i] == list(ALONE)


def test_every_other_sample_of_the_class_is_as_likely() -> None:
    counts = torch.zeros(len(LABELS), len(LABELS))
    for epoch in range(4000):
        counts[torch.arange(len(LABELS)), draw_same_class_pairs(LABELS, 0, epoch)] += 1
    others = (LABELS[:, None] == LABELS) & ~torch.eye(len(LABELS), dtype=torch.bool)
    shares = counts / 4000 * others.sum(dim=1, keepdim=True)
    assert float((shares[others] - 1).abs().max()) < 0.15


def test_partners_follow_seed_and_epoch_alone() -> None:
    one = draw_same_class_pairs(LABELS, seed=3, epoch=2)
    torch.manual_seed(99)  # the global state must not matter
    assert torch.equal(one, draw_same_class_pairs(LABELS, seed=3, epoch=2))
    assert not torch.equal(one, draw_same_class_pairs(LABELS, seed=3, epoch=3))
    assert not torch.equal(one, draw_same_class_pairs(LABELS, seed=4, epoch=2))


def test_a_sample_keeps_its_partner_when_another_class_grows() -> None:
    """The draw is the sample's own: samples added after it, of other classes, change nothing."""
    grown = torch.cat([LABELS, torch.tensor([1, 1, 3])])
    partners = draw_same_class_pairs(grown, seed=0, epoch=1)[: len(LABELS)]
    unchanged = LABELS != 1
    assert torch.equal(partners[unchanged], draw_same_class_pairs(LABELS, 0, 1)[unchanged])
