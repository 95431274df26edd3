"""What can be selected from the attention heads of a transformer."""

from __future__ import annotations

from typing import Any

from timm.layers.attention import Attention as TimmAttention
from torch import nn

from twinbud.config.schema import Attention
from twinbud.core.errors import TwinbudError


def has_head_norms(block: nn.Module) -> bool:
    """Return whether the block normalizes the queries and keys of each head with weights that all heads share."""
    attention = getattr(block, "attn", None)
    return attention is not None and not isinstance(getattr(attention, "q_norm", nn.Identity()), nn.Identity)


def has_plain_heads(block: nn.Module) -> bool:
    """Return whether the block's heads are those of timm's ``Attention``, and its projection alone reads them."""
    attention = getattr(block, "attn", None)
    return type(attention) is TimmAttention and isinstance(attention.norm, nn.Identity) and attention.gate is None


def attention_of(block: nn.Module) -> Any:
    """Return the attention of a transformer block.

    Raises:
        TwinbudError: It has several, or one that is no layer of its own: timm's parallel blocks.
    """
    attention = getattr(block, "attn", None)
    if attention is None:
        raise TwinbudError(
            f"a {type(block).__name__} has no single attention layer, so its widths are not described",
            where="selection from a ViT",
            fix="Choose another network, or train it whole with --method finetune",
        )
    return attention


def part_of_every_head(model: Any, divisor: int) -> dict[str, Any]:
    """Return the arguments of ``timm.create_model`` for a ViT of a part of the width with as many heads.

    Raises:
        TwinbudError: The channels of a head cannot be divided by ``divisor``.
    """
    size = attention_of(model.blocks[0]).head_dim
    if size % divisor:
        raise TwinbudError(
            f"attention heads of {size} channels cannot be divided by {divisor}",
            where="--attention within",
            fix="Use --attention heads",
        )
    return {"embed_dim": model.embed_dim // divisor}


def undivided_heads(block: nn.Module, divisor: int, architecture: str) -> TwinbudError:
    """Return the error for a network whose number of heads is no multiple of ``divisor``."""
    attention = attention_of(block)
    ways = [f"choose a teacher whose number of heads is a multiple of {divisor}"]
    if attention.num_heads % 2 == 0:
        ways.insert(0, "use --student half")
    if has_plain_heads(block) and attention.head_dim % divisor == 0:
        ways.insert(0, "use --attention within, which keeps all heads")
    return TwinbudError(
        f"{attention.num_heads} attention heads cannot be divided by {divisor}",
        where=architecture,
        fix=", or ".join(ways).capitalize(),
    )


def whole_heads_only(reason: str, attention: Attention) -> TwinbudError:
    """Return the error for a network whose channels inside heads have roles that all heads share."""
    return TwinbudError(
        f"heads cannot be made of parts of the teacher's heads: the network has {reason}",
        where=f"--attention {attention}",
        fix="Use --attention heads",
    )


def no_narrower_heads(model: nn.Module) -> TwinbudError:
    """Return the error for a network whose heads cannot get narrower."""
    return TwinbudError(
        f"the heads of this {type(model).__name__} cannot get narrower, only those of a ViT with timm's Attention",
        where="--attention within",
        fix="Use --attention heads",
    )
