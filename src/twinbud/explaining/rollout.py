"""Attention rollout (Abnar & Zuidema, ACL 2020): how much of each patch reaches what the classifier reads.

Shape legend: B images, L tokens, h × w patches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import TimmModel


def attention_rollout(model: TimmModel, images_BCSS: torch.Tensor) -> torch.Tensor:
    """Multiply the attention of all blocks, the mean of the heads, with half of each token's own value added.

    The map has no class: it is the same whatever is predicted.

    Args:
        model: A transformer in evaluation mode.
        images_BCSS: Normalized images.

    Returns:
        (B, h, w) float32: the share of each patch in the class token, or in the mean of the patches without one.

    Raises:
        TwinbudError: See ``require_attention``; the patches form no square.
    """
    require_attention(model)
    with torch.inference_mode(), _attention_of(model) as blocks:
        model(images_BCSS)
    rolled_BLL = torch.eye(blocks[0].shape[-1]).to(blocks[0])
    for attention_BLL in blocks:
        rolled_BLL = (attention_BLL @ rolled_BLL + rolled_BLL) / 2
    num_prefix = model.num_prefix_tokens
    is_token = num_prefix and model.global_pool != "avg"
    read_BL = rolled_BLL[:, 0] if is_token else rolled_BLL[:, num_prefix:].mean(dim=1)
    patches_BL = read_BL[:, num_prefix:]
    side = math.isqrt(patches_BL.shape[1])
    if side**2 != patches_BL.shape[1]:
        raise _no_rollout(f"{patches_BL.shape[1]} patches form no square")
    return patches_BL.unflatten(1, (side, side)).float().clone()


def require_attention(model: TimmModel) -> None:
    """Refuse a network in which not every patch attends to every other in all blocks.

    Raises:
        TwinbudError: It is none of timm's ViT or EVA, or computes attention in another way.
    """
    blocks = getattr(model, "blocks", None)
    if not hasattr(model, "num_prefix_tokens") or not blocks:
        raise _no_rollout(f"{type(model).__name__} has no attention between all patches")
    if not all(hasattr(getattr(block, "attn", None), "attn_drop") for block in blocks):
        raise _no_rollout(f"the blocks of this {type(model).__name__} do not show their attention")


@contextmanager
def _attention_of(model: TimmModel) -> Iterator[list[torch.Tensor]]:
    """Collect the attention (B, L, L) of each block, the mean of its heads, while the context is open."""
    found: list[torch.Tensor] = []
    layers = [block.attn for block in model.blocks]
    were_fused = [layer.fused_attn for layer in layers]
    handles = [
        layer.attn_drop.register_forward_hook(lambda _module, _inputs, output: found.append(output.mean(dim=1)))
        for layer in layers
    ]
    try:
        for layer in layers:
            layer.fused_attn = False  # the fused kernel does not give its weights
        yield found
    finally:
        for layer, was_fused, handle in zip(layers, were_fused, handles, strict=True):
            layer.fused_attn = was_fused
            handle.remove()


def _no_rollout(reason: str) -> TwinbudError:
    return TwinbudError(f"attention rollout needs a ViT: {reason}", where="--map rollout", fix="Use --map grad-cam")
