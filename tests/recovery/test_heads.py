"""A change of the heads' bases changes nothing but which channels matter."""

from __future__ import annotations

import pytest
import torch

from helpers.recovering import beside, refit_batches
from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import TimmModel
from twinbud.models.selection import PairRole
from twinbud.recovery.channel_map import ChannelMap
from twinbud.recovery.heads import change_head_bases, importance_in_plan
from twinbud.recovery.importance import important_indices

KINDS = ("vit", "plain vit", "distilled vit", "vit with registers", "pooled vit")


def rebased(pair: ChannelMap) -> ChannelMap:
    change_head_bases(pair.teacher, pair.family, refit_batches(28), pair.plan)
    return pair


def scores(attention: TimmModel, tokens_BLD: torch.Tensor, channels: int, head_size: int) -> torch.Tensor:
    """Softmax of the scores that the first channels of each head give, divided by the root of a head's size."""
    queries, keys, _ = attention.qkv(tokens_BLD).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
    products = torch.einsum("blhu,bmhu->bhlm", queries[..., :channels], keys[..., :channels])
    return (products / head_size**0.5).softmax(dim=-1)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_computes_the_same_in_the_new_bases(kind: str) -> None:
    pair = beside(kind, attention="within")
    images = refit_batches(28)[0].images_BCSS
    before, weights = pair.teacher(images), pair.teacher.blocks[0].attn.qkv.weight.clone()
    after = rebased(pair).teacher(images)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    assert not torch.allclose(pair.teacher.blocks[0].attn.qkv.weight, weights, atol=1e-3)


@torch.no_grad()
def test_heads_of_half_the_rank_lose_nothing() -> None:
    """Queries and values of 4 directions in 8 channels: the first 4 channels suffice."""
    pair, generator = beside("vit", attention="within"), torch.Generator().manual_seed(0)
    for block in pair.teacher.blocks:
        parts = block.attn.qkv.weight.unflatten(0, (3, 4, 8))
        biases = block.attn.qkv.bias.unflatten(0, (3, 4, 8))
        for part in (0, 2):  # scores have the rank of the queries
            for head in range(4):
                basis, _ = torch.linalg.qr(torch.randn(8, 4, generator=generator))
                parts[part, head] = basis @ basis.T @ parts[part, head]
                biases[part, head] = basis @ basis.T @ biases[part, head]
    tokens = torch.randn(2, 17, 32, generator=generator)
    expected = [scores(block.attn, tokens, 8, 8) for block in pair.teacher.blocks]
    rebased(pair)
    for block, wanted in zip(pair.teacher.blocks, expected, strict=True):
        torch.testing.assert_close(scores(block.attn, tokens, 4, 4), wanted, rtol=1e-3, atol=1e-4)
        values_HRU = block.attn.qkv(tokens).unflatten(-1, (3, 4, 8))[:, :, 2].flatten(0, 1).transpose(0, 1).double()
        first, rest = values_HRU.split(4, dim=-1)
        estimated = first @ torch.linalg.lstsq(first, rest).solution
        torch.testing.assert_close(estimated, rest, rtol=1e-3, atol=1e-4)


def test_channels_matter_less_and_less_and_an_auxiliary_takes_every_other_one() -> None:
    pair = beside("vit", attention="within")
    importance = importance_in_plan({"heads/blocks.0": torch.ones(4), "mlp/blocks.0": torch.ones(128)}, pair.plan)
    assert importance.keys() == {"mlp/blocks.0", "within/blocks.0", "within/blocks.1"}

    def kept(pair_role: PairRole, *, with_auxiliary: bool) -> tuple[int, ...]:
        return important_indices(importance, pair.plan, pair_role, with_auxiliary=with_auxiliary)["within/blocks.1"]

    assert kept("student", with_auxiliary=False) == (0, 1, 2, 3)
    assert kept("student", with_auxiliary=True) == (0, 2, 4, 6)
    assert kept("auxiliary", with_auxiliary=True) == (1, 3, 5, 7)


def test_importance_of_whole_heads_stays() -> None:
    pair = beside("vit", attention="heads")
    importance = {"heads/blocks.0": torch.ones(4)}
    assert importance_in_plan(importance, pair.plan) == importance


def test_features_that_are_not_finite_are_refused() -> None:
    pair = beside("vit", attention="within")
    batches = [batch._replace(images_BCSS=batch.images_BCSS * float("nan")) for batch in refit_batches(28)]
    with pytest.raises(TwinbudError, match="features of the teacher are not finite"):
        change_head_bases(pair.teacher, pair.family, batches, pair.plan)


@torch.no_grad()
def test_a_head_whose_keys_do_not_vary_stays_finite() -> None:
    pair = beside("vit", attention="within")
    attention = pair.teacher.blocks[0].attn
    attention.qkv.weight.unflatten(0, (3, 4, 8))[1, 0] = 0
    attention.qkv.bias.unflatten(0, (3, 4, 8))[1, 0] = 1
    images = refit_batches(28)[0].images_BCSS
    before = pair.teacher(images)
    torch.testing.assert_close(rebased(pair).teacher(images), before, rtol=1e-4, atol=1e-4)
