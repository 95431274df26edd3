"""DINOv3, EVA and EVA-02: transformers with rotary positions or gated MLPs, as timm's ``Eva`` builds them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, ClassVar

import torch
from timm.models.eva import Eva, EvaBlock
from torch import nn

from twinbud.config.schema import Attention
from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import Branch, LinearMap, RecoverySupport, State, TimmModel
from twinbud.models.families.heads import no_narrower_heads, whole_heads_only
from twinbud.models.families.isotropic import RESIDUAL, IsotropicRecovery
from twinbud.models.families.vit import (
    CLASSIFIERS,
    PREFIX_TOKENS,
    ViTFamily,
    fold_scales,
    gates,
)
from twinbud.models.widths import Axis, Role, TensorSpec

_SCALES = {"gamma_1": "attn.proj", "gamma_2": "mlp.fc2"}
"""LayerScale parameters of a block, and the layer before each."""
_ATTENTION_READERS = ("attn.gate", "attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj")
_MLP_READERS = ("mlp.fc1", "mlp.fc1_g", "mlp.fc1_x")
"""Layers that read the stream, in the order in which they are computed; a block has some of them."""


class RotaryBlock(nn.Module):
    """A block of an Eva together with the rotary positions that its model gives it beside the stream.

    Layers and parameters are the block's own, under the same names.

    Args:
        model: The network, built for one image size.
        block: One of its blocks.
    """

    def __init__(self, model: TimmModel, block: TimmModel) -> None:
        super().__init__()
        for name, layer in block.named_children():
            self.add_module(name, layer)
        for name, parameter in block.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self._parts = (model, block)  # in a tuple, so that they are no submodules

    @property
    def block(self) -> TimmModel:
        """The block alone."""
        return self._parts[1]

    def positions(self) -> torch.Tensor | None:
        """Return the rotary positions of the patches, or None for a network that has none."""
        model, _ = self._parts
        return None if model.rope is None else model.rope.get_embed(shape=model.patch_embed.grid_size)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        """Return the stream (B, L, D) after the block."""
        return self.block(stream, rope=self.positions())


class EvaRecovery(IsotropicRecovery):
    """One residual stream (B, L, D), prefix tokens included."""

    def embed(self, model: TimmModel, images_BCSS: torch.Tensor) -> torch.Tensor:
        """Return (B, L, D): patch embeddings, with learned positions if there are any, and prefix tokens."""
        stream, _ = model._pos_embed(model.patch_embed(images_BCSS))
        return model.norm_pre(stream)

    def branches(self, block: TimmModel) -> tuple[Branch, ...]:
        """Return attention and MLP, whose gate may be a layer of its own.

        Raises:
            TwinbudError: The block does not normalize before attention, or adds biases outside its layers.
        """
        inner = block.block
        outside = getattr(inner.attn, "q_bias", None) is not None
        if not isinstance(inner, EvaBlock) or outside:
            reason = "biases of queries and values outside their layer" if outside else type(inner).__name__
            raise TwinbudError(
                f"recovery does not support {reason}, only pre-norm transformer blocks of whole layers",
                where="--recover",
                fix="Choose another teacher, such as vit_small_patch16_dinov3, or --recover none",
            )
        scales = [name if getattr(inner, name) is not None else None for name in _SCALES]

        def attend(stream: torch.Tensor) -> torch.Tensor:
            added = inner.attn(inner.norm1(stream), rope=block.positions())
            return stream + (added if inner.gamma_1 is None else inner.gamma_1 * added)

        def transform(stream: torch.Tensor) -> torch.Tensor:
            added = inner.mlp(inner.norm2(stream))
            return stream + (added if inner.gamma_2 is None else inner.gamma_2 * added)

        attention, mlp = (
            tuple(LinearMap(name=name) for name in names if _has_layer(inner, name))
            for names in (_ATTENTION_READERS, _MLP_READERS)
        )
        return (
            Branch(forward=attend, linears=(*attention, LinearMap(name="attn.proj", writes=True, scale=scales[0]))),
            Branch(forward=transform, linears=(*mlp, LinearMap(name="mlp.fc2", writes=True, scale=scales[1]))),
        )


class EvaFamily(ViTFamily):
    """Widths as those of a ViT. Rotary positions give each channel of a head a frequency: heads are selected whole."""

    name: ClassVar[str] = "DINOv3/EVA"
    members: ClassVar[str] = "DINOv3 (with EVA and EVA-02)"
    recovery: ClassVar[RecoverySupport | None] = EvaRecovery()
    pairs: ClassVar[tuple[tuple[str, str], ...]] = (
        ("vit_base_patch16_dinov3.lvd1689m", "vit_small_patch16_dinov3"),
        ("vit_small_patch16_dinov3.lvd1689m", "half"),
        ("eva02_small_patch14_224.mim_in22k", "eva02_tiny_patch14_224"),
    )

    def owns(self, model: nn.Module) -> bool:
        """Return whether ``model`` is timm's Eva."""
        return isinstance(model, Eva)

    def blocks(self, model: TimmModel) -> dict[str, nn.Module]:
        """Return the transformer blocks, each with its rotary positions."""
        return {f"blocks.{number}": RotaryBlock(model, block) for number, block in enumerate(model.blocks)}

    def specs(self, model: TimmModel) -> dict[str, TensorSpec]:
        """See ``SelectionFamily.specs``."""
        return {name: _spec(model, name, tensor.dim()) for name, tensor in model.state_dict().items()}

    def narrow_arguments(self, architecture: str, model: TimmModel, divisor: int) -> dict[str, Any]:
        """Divide the width and the number of heads; head size and queries per key head stay.

        Raises:
            TwinbudError: A number of heads cannot be divided by ``divisor``.
        """
        arguments = super().narrow_arguments(architecture, model, divisor)
        shared = [num_key_heads(block) for block in model.blocks]
        if shared == [block.attn.num_heads for block in model.blocks]:
            return arguments
        if any(number % divisor for number in shared):
            raise TwinbudError(
                f"{shared} key heads of the blocks cannot all be divided by {divisor}",
                where=architecture,
                fix="Choose another teacher" + (", or use --student half" if divisor != 2 else ""),
            )
        return arguments | {"num_kv_heads": [number // divisor for number in shared]}

    def pooling_arguments(self, model: TimmModel) -> dict[str, Any]:
        """Pool the mean of the patch tokens, as timm does by default, if the network pools nothing; norms stay."""
        if model.global_pool:
            return {}
        norms = {"use_fc_norm": model.fc_norm, "use_post_transformer_norm": model.norm}
        return {"global_pool": "avg"} | {name: not isinstance(norm, nn.Identity) for name, norm in norms.items()}

    def check_attention(self, model: TimmModel, attention: Attention) -> None:
        """Require whole heads where positions are rotary or heads share norms or keys.

        Raises:
            TwinbudError: ``attention`` is ``interleaved``, and there is such a part; or it is ``within``.
        """
        if attention == "within":
            raise no_narrower_heads(model)
        if attention == "interleaved" and (reason := _needs_whole_heads(model)):
            raise whole_heads_only(reason, attention)

    def fold_layer_scale(self, state: State, student_tensors: set[str]) -> tuple[State, dict[str, str]]:
        """Fold gamma_1 into the attention's projection and gamma_2 into fc2: (Wx + b)·γ = (γW)x + γb."""
        return fold_scales(state, student_tensors, _SCALES)


def _has_layer(block: TimmModel, name: str) -> bool:
    part, _, layer = name.partition(".")
    return getattr(block.get_submodule(part), layer, None) is not None


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
