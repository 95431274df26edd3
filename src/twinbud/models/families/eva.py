"""DINOv3, EVA and EVA-02: transformers with rotary positions or gated MLPs, as timm's ``Eva`` builds them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, ClassVar

from timm.models.eva import Eva
from torch import nn

from twinbud.config.schema import Attention
from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import RecoverySupport, State, TimmModel
from twinbud.models.families.vit import (
    CLASSIFIERS,
    PREFIX_TOKENS,
    RESIDUAL,
    ViTFamily,
    fold_scales,
    gates,
    whole_heads_only,
)
from twinbud.models.widths import Axis, Role, TensorSpec

_SCALES = {"gamma_1": "attn.proj", "gamma_2": "mlp.fc2"}
"""LayerScale parameters of a block, and the layer before each."""


class EvaFamily(ViTFamily):
    """Widths as those of a ViT. Rotary positions give each channel of a head a frequency: heads are selected whole."""

    name: ClassVar[str] = "DINOv3/EVA"
    members: ClassVar[str] = "DINOv3 (with EVA and EVA-02)"
    # a block of Eva needs the rotary positions beside the stream, which RecoverySupport has no place for
    recovery: ClassVar[RecoverySupport | None] = None

    def owns(self, model: nn.Module) -> bool:
        """Return whether ``model`` is timm's Eva."""
        return isinstance(model, Eva)

    def specs(self, model: TimmModel) -> dict[str, TensorSpec]:
        """See ``SelectionFamily.specs``."""
        return {name: _spec(model, name, tensor.dim()) for name, tensor in model.state_dict().items()}

    def half(self, architecture: str, model: TimmModel) -> dict[str, Any]:
        """Halve the width and the number of heads; head size and queries per key head stay.

        Raises:
            TwinbudError: A number of heads is odd.
        """
        arguments = super().half(architecture, model)
        shared = [num_key_heads(block) for block in model.blocks]
        if shared == [block.attn.num_heads for block in model.blocks]:
            return arguments
        if any(number % 2 for number in shared):
            raise TwinbudError(
                f"{shared} key heads of the blocks cannot all be halved",
                where=architecture,
                fix="Choose another teacher",
            )
        return arguments | {"num_kv_heads": [number // 2 for number in shared]}

    def pooling_arguments(self, model: TimmModel) -> dict[str, Any]:
        """Pool the mean of the patch tokens, as timm does by default, if the network pools nothing; norms stay."""
        if model.global_pool:
            return {}
        norms = {"use_fc_norm": model.fc_norm, "use_post_transformer_norm": model.norm}
        return {"global_pool": "avg"} | {name: not isinstance(norm, nn.Identity) for name, norm in norms.items()}

    def check_attention(self, model: TimmModel, attention: Attention) -> None:
        """Require whole heads where positions are rotary or heads share norms or keys.

        Raises:
            TwinbudError: ``attention`` is ``interleaved``, and there is such a part.
        """
        if attention == "interleaved" and (reason := _needs_whole_heads(model)):
            raise whole_heads_only(reason)

    def fold_layer_scale(self, state: State, student_tensors: set[str]) -> tuple[State, dict[str, str]]:
        """Fold gamma_1 into the attention's projection and gamma_2 into fc2: (Wx + b)·γ = (γW)x + γb."""
        return fold_scales(state, student_tensors, _SCALES)


def num_key_heads(block: TimmModel) -> int:
    """Return the number of heads of keys and values, which groups of query heads may share."""
    return getattr(block.attn, "num_kv_heads", block.attn.num_heads)


def _needs_whole_heads(model: TimmModel) -> str | None:
    """Return why channels of different heads may not be mixed, or None."""
    if model.rope is not None:
        return "rotary positions, which turn each channel of a head at a frequency of its own"
    if any(num_key_heads(block) != block.attn.num_heads for block in model.blocks):
        return "query heads that share keys"
    if any(not isinstance(block.attn.q_norm, nn.Identity) for block in model.blocks):
        return "norms of queries and keys that all heads share"
    return None


def _spec(model: TimmModel, name: str, dimensions: int) -> TensorSpec:
    """Return the spec of the tensor ``name``.

    Raises:
        TwinbudError: No width is defined for it.
    """
    part, _, kind = name.rpartition(".")
    if match := re.fullmatch(r"(blocks\.\d+)\.(.+)", name):
        # gamma_1, q_bias and their like are parameters of the block or its attention, not of a layer
        inside = match[2] if kind not in ("weight", "bias") else match[2].rpartition(".")[0]
        axes = _block_axes(model, match[1], inside)
        if axes is not None:
            role: Role = "layer-scale" if kind in _SCALES else "weight"
            return TensorSpec(axes[:dimensions], role, layer=match[1])
    if name in PREFIX_TOKENS:
        return TensorSpec((None, None, RESIDUAL), "prefix-token")
    if name == "pos_embed":
        return TensorSpec((None, None, RESIDUAL), "position")
    if name == "patch_embed.proj.weight":
        return TensorSpec((RESIDUAL, None, None, None), "patch")
    if part in ("patch_embed.proj", "norm_pre", "norm", "fc_norm"):
        return TensorSpec((RESIDUAL,))
    if part in CLASSIFIERS:
        return TensorSpec((None, RESIDUAL)[:dimensions], "classifier")
    raise TwinbudError(
        f"{type(model).__name__} has tensor '{name}', for which no width is defined",
        where="selection from a DINOv3 or EVA",
        fix="Choose another teacher or student",
    )


def _block_axes(model: TimmModel, block: str, part: str) -> tuple[Axis | None, ...] | None:
    """Return the axes of a part's weight or parameter; a bias runs along the first of them."""
    layer = model.get_submodule(block)
    keys = Axis(f"attention/{block}", head_size=layer.attn.head_dim)
    if _needs_whole_heads(model):
        keys = keys.by_heads()
    # queries, gates and outputs have as many heads for each key head as the block says
    inner = replace(keys, unit=keys.unit * (layer.attn.num_heads // num_key_heads(layer)))
    hidden = Axis(f"mlp/{block}")
    packed = hidden if hasattr(layer.mlp, "fc1_g") else Axis(hidden.width, copies=gates(layer.mlp))
    return {
        "norm1": (RESIDUAL,),
        "norm2": (RESIDUAL,),
        "gamma_1": (RESIDUAL,),
        "gamma_2": (RESIDUAL,),
        "attn.qkv": (replace(keys, copies=3), RESIDUAL),
        "attn.q_bias": (keys,),
        "attn.v_bias": (keys,),
        "attn.q_proj": (inner, RESIDUAL),
        "attn.k_proj": (keys, RESIDUAL),
        "attn.v_proj": (keys, RESIDUAL),
        "attn.q_norm": (None,),
        "attn.k_norm": (None,),
        "attn.norm": (inner,),
        "attn.gate": (inner, RESIDUAL),
        "attn.proj": (RESIDUAL, inner),
        "mlp.fc1": (packed, RESIDUAL),
        "mlp.fc1_g": (hidden, RESIDUAL),
        "mlp.fc1_x": (hidden, RESIDUAL),
        "mlp.norm": (hidden,),
        "mlp.fc2": (RESIDUAL, hidden),
    }.get(part)
