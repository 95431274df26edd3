"""ViT, DeiT and DINOv2: isotropic transformers, as timm's ``VisionTransformer`` builds them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from twinbud.config.schema import Attention
from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import (
    Branch,
    LinearMap,
    NetworkShape,
    RecoverySupport,
    SelectionFamily,
    State,
    TimmModel,
    no_single_stream,
)
from twinbud.models.families.heads import (
    attention_of,
    has_head_norms,
    has_plain_heads,
    no_narrower_heads,
    undivided_heads,
    whole_heads_only,
)
from twinbud.models.families.isotropic import RESIDUAL, IsotropicRecovery
from twinbud.models.widths import Axis, Role, TensorSpec

PREFIX_TOKENS = ("cls_token", "reg_token", "dist_token")
CLASSIFIERS = ("head", "head_dist")


class ViTRecovery(IsotropicRecovery):
    """One residual stream (B, L, D), prefix tokens included."""

    def embed(self, model: TimmModel, images_BCSS: torch.Tensor) -> torch.Tensor:
        """Return (B, L, D): patch embeddings and prefix tokens with their positions."""
        return model.norm_pre(model._pos_embed(model.patch_embed(images_BCSS)))

    def branches(self, block: TimmModel) -> tuple[Branch, ...]:
        """Return attention (queries, keys and values; projection) and MLP (both layers).

        Raises:
            TwinbudError: The block does not normalize before attention.
        """
        if not isinstance(block, Block):
            raise TwinbudError(
                f"recovery does not support {type(block).__name__}, only pre-norm transformer blocks",
                where="--recover",
                fix="Choose another teacher, or --recover none",
            )
        scales = [f"{name}.gamma" if hasattr(block.get_submodule(name), "gamma") else None for name in ("ls1", "ls2")]
        return (
            Branch(
                forward=lambda stream: stream + block.ls1(block.attn(block.norm1(stream))),
                linears=(LinearMap(name="attn.qkv"), LinearMap(name="attn.proj", writes=True, scale=scales[0])),
            ),
            Branch(
                forward=lambda stream: stream + block.ls2(block.mlp(block.norm2(stream))),
                linears=(LinearMap(name="mlp.fc1"), LinearMap(name="mlp.fc2", writes=True, scale=scales[1])),
            ),
        )

    def stream_norms(self, model: TimmModel, option: str = "--recover-stream subspace") -> dict[str, tuple[str, ...]]:
        """Return both norms of each block and the final one, before or after pooling.

        Raises:
            TwinbudError: A norm is no LayerNorm, or the model normalizes before the first block.
        """
        norms: dict[str, tuple[str, ...]] = {}
        for number in range(len(model.blocks)):
            norms[f"blocks.{number}.norm1"] = (f"blocks.{number}.attn.qkv",)
            norms[f"blocks.{number}.norm2"] = (f"blocks.{number}.mlp.fc1",)
        norms["fc_norm" if isinstance(model.norm, nn.Identity) else "norm"] = ()
        if not all(isinstance(model.get_submodule(name), nn.LayerNorm) for name in norms):
            raise no_single_stream("ViTs with other norms than LayerNorm", option)
        if not isinstance(model.norm_pre, nn.Identity):
            raise no_single_stream("ViTs with a norm before the first block", option)
        return norms


class ViTFamily(SelectionFamily):
    """Widths: one residual stream; the attention's inner width and the MLP's hidden width in each block."""

    name: ClassVar[str] = "ViT"
    members: ClassVar[str] = "ViT (with DeiT and DINOv2)"
    temperature: ClassVar[float] = 4.0
    drop_path: ClassVar[float] = 0.0
    recovery: ClassVar[RecoverySupport | None] = ViTRecovery()
    pairs: ClassVar[tuple[tuple[str, str], ...]] = (
        ("vit_small_patch16_224.augreg_in21k", "vit_tiny_patch16_224"),
        ("deit_small_patch16_224", "deit_tiny_patch16_224"),
        ("vit_base_patch14_dinov2", "vit_small_patch14_dinov2"),
        ("vit_small_patch14_dinov2", "half"),
    )

    def owns(self, model: nn.Module) -> bool:
        """Return whether ``model`` is timm's VisionTransformer or a subclass (DeiT with distillation token)."""
        return isinstance(model, VisionTransformer)

    def blocks(self, model: TimmModel) -> dict[str, nn.Module]:
        """Return the transformer blocks."""
        return {f"blocks.{number}": block for number, block in enumerate(model.blocks)}

    def specs(self, model: TimmModel) -> dict[str, TensorSpec]:
        """See ``SelectionFamily.specs``."""
        return {name: _spec(model, name, tensor.dim()) for name, tensor in model.state_dict().items()}

    def narrow_arguments(self, architecture: str, model: TimmModel, divisor: int) -> dict[str, Any]:
        """Divide the width and the number of heads; the head size stays.

        Raises:
            TwinbudError: The number of heads cannot be divided by ``divisor``.
        """
        heads = attention_of(model.blocks[0]).num_heads
        if heads % divisor:
            raise undivided_heads(model.blocks[0], divisor, architecture)
        return {"embed_dim": model.embed_dim // divisor, "num_heads": heads // divisor} | self.pooling_arguments(model)

    def pooling_arguments(self, model: TimmModel) -> dict[str, Any]:
        """Pool the class token, or the mean of all tokens without one, if the network pools nothing."""
        if model.global_pool:
            return {}
        pool = "token" if model.num_prefix_tokens else "avg"
        return {"global_pool": pool, "fc_norm": not isinstance(model.fc_norm, nn.Identity)}

    def shape(self, model: TimmModel) -> NetworkShape:
        """See ``SelectionFamily.shape``."""
        heads = attention_of(model.blocks[0]).num_heads
        return NetworkShape(depths=(len(model.blocks),), widths=(model.embed_dim,), heads=(heads,))

    def image_arguments(self, model: TimmModel, image_size: int, where: str) -> dict[str, Any]:
        """Return ``img_size``, for which the position grid is built.

        Raises:
            TwinbudError: The size is not a multiple of the patch size.
        """
        patch = model.patch_embed.patch_size[0]
        if patch > 1:  # in a hybrid, of a smaller map; kernels of one element read a map of any size
            patch = model.patch_embed.feat_ratio()
        if image_size % patch:
            below = max(patch, image_size // patch * patch)
            raise TwinbudError(
                f"an image size of {image_size} is not a multiple of the patch size, {patch} pixels",
                where=where,
                fix=f"Use --image-size {below} or {below + patch}",
            )
        return {"img_size": image_size}

    def arguments_from_weights(self, model: TimmModel, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Return ``img_size`` from the position grid and the pixels of a position, for a square grid."""
        if "pos_embed" not in state:
            return {}
        # a few prefix tokens never complete the next square, so the root's floor is the grid
        side = math.isqrt(state["pos_embed"].shape[1])
        # not the patch kernel: in a hybrid, it reads the smaller maps of a convolutional network
        return {"img_size": side * model.patch_embed.feat_ratio()}

    def check_attention(self, model: TimmModel, attention: Attention) -> None:
        """Require whole heads where all heads share the norms of queries and keys.

        Raises:
            TwinbudError: ``attention`` is not ``heads``, and there are such norms; or it is ``within``, and the network
                normalizes what its heads add up to, or its heads are not those of timm's ``Attention``.
        """
        for block in model.blocks:
            attention_of(block)
        if attention != "heads" and any(has_head_norms(block) for block in model.blocks):
            raise whole_heads_only("norms of queries and keys that all heads share", attention)
        if attention == "within" and not all(has_plain_heads(block) for block in model.blocks):
            raise no_narrower_heads(model)

    def check_compatible(self, teacher: TimmModel, student: TimmModel, attention: Attention) -> None:
        """Require the teacher's head size, or with ``within`` its number of heads, and its number of prefix tokens.

        Raises:
            TwinbudError: The student differs in one of them.
        """
        own, given = attention_of(student.blocks[0]), attention_of(teacher.blocks[0])
        student_size, teacher_size = own.head_dim, given.head_dim
        student_heads, teacher_heads = own.num_heads, given.num_heads
        if attention == "within" and student_heads != teacher_heads:
            raise TwinbudError(
                f"the student has {student_heads} attention heads, the teacher {teacher_heads}",
                where="--attention within",
                fix="Use --student half, or --attention heads",
            )
        if attention != "within" and student_size != teacher_size:
            raise TwinbudError(
                f"the student's attention heads have {student_size} channels, the teacher's {teacher_size}",
                where="--student",
                fix="Use --student half, or a student whose number of heads shrinks with its width",
            )
        for part, count in (
            ("prefix tokens", lambda model: model.num_prefix_tokens),
            ("positions of prefix tokens", _num_prefix_positions),
        ):
            if count(student) != count(teacher):
                raise TwinbudError(
                    f"the student has {count(student)} {part}, the teacher {count(teacher)}",
                    where="--student",
                    fix="Use --student half, which keeps them",
                )

    def fold_layer_scale(self, state: State, student_tensors: set[str]) -> tuple[State, dict[str, str]]:
        """Fold ls1 into the attention's projection and ls2 into fc2: (Wx + b)·γ = (γW)x + γb."""
        return fold_scales(state, student_tensors, {"ls1.gamma": "attn.proj", "ls2.gamma": "mlp.fc2"})

    def fit_positions(self, state: State, model: TimmModel) -> State:
        """Resample the grid, if any (bicubic, no antialiasing), as the teacher itself adapts to another image size."""
        if "pos_embed" not in state:
            return state
        grid = resample_abs_pos_embed(
            state["pos_embed"],
            new_size=list(model.patch_embed.grid_size),
            num_prefix_tokens=_num_prefix_positions(model),
            antialias=False,
        )
        return {**state, "pos_embed": grid}


def fold_scales(state: State, student_tensors: set[str], targets: Mapping[str, str]) -> tuple[State, dict[str, str]]:
    """Multiply LayerScale into the layers before it: (Wx + b)·γ = (γW)x + γb.

    Args:
        state: The teacher's tensors.
        student_tensors: Names of the student's; a LayerScale among them stays.
        targets: For each LayerScale inside a block, the layer before it.

    Returns:
        See ``SelectionFamily.fold_layer_scale``.
    """
    folded: dict[str, str] = {}
    result = dict(state)
    for name, gamma in state.items():
        match = re.fullmatch(r"(blocks\.\d+)\.(.+)", name)
        if match is None or match[2] not in targets or name in student_tensors:
            continue
        target = f"{match[1]}.{targets[match[2]]}"
        result[f"{target}.weight"] = state[f"{target}.weight"] * gamma[:, None]
        if f"{target}.bias" in state:
            result[f"{target}.bias"] = state[f"{target}.bias"] * gamma
        del result[name]
        folded[name] = target
    return result, folded


def gates(mlp: TimmModel) -> int:
    """Return the number of equal parts in fc1's outputs: a packed SwiGLU stacks its gate and its value."""
    return mlp.fc1.out_features // mlp.fc2.in_features


def _heads(block: TimmModel, width: str) -> Axis:
    attention = attention_of(block)
    num_heads = attention.num_heads if has_plain_heads(block) else None
    return Axis(width, head_size=attention.head_dim, num_heads=num_heads)


def _num_prefix_positions(model: TimmModel) -> int:
    return 0 if model.no_embed_class else model.num_prefix_tokens


def _spec(model: TimmModel, name: str, dimensions: int) -> TensorSpec:
    """Return the spec of the tensor ``name``.

    Raises:
        TwinbudError: No width is defined for it.
    """
    match = re.fullmatch(r"(blocks\.\d+)\.(.+)\.(weight|bias|gamma)", name)
    if match:
        axes = _block_axes(model, match[1], match[2])
        if axes is not None:
            role: Role = "layer-scale" if match[3] == "gamma" else "weight"
            return TensorSpec(axes if match[3] == "weight" else axes[:1], role, layer=match[1])
    if name in PREFIX_TOKENS:
        return TensorSpec((None, None, RESIDUAL), "prefix-token")
    if name == "pos_embed":
        return TensorSpec((None, None, RESIDUAL), "position")
    if name == "patch_embed.proj.weight":
        return TensorSpec((RESIDUAL, None, None, None), "patch")
    part = name.rpartition(".")[0]
    if part in ("patch_embed.proj", "patch_embed.norm", "norm_pre", "norm", "fc_norm"):
        return TensorSpec((RESIDUAL,))
    if part in CLASSIFIERS:
        return TensorSpec((None, RESIDUAL)[:dimensions], "classifier")
    raise TwinbudError(
        f"{type(model).__name__} has tensor '{name}', for which no width is defined",
        where="selection from a ViT",
        fix="Choose another teacher or student",
    )


def _block_axes(model: TimmModel, block: str, part: str) -> tuple[Axis | None, ...] | None:
    """Return the axes of a part's weight; its bias runs along the first of them."""
    layer = model.get_submodule(block)
    inner, hidden = _heads(layer, f"attention/{block}"), Axis(f"mlp/{block}")
    if has_head_norms(layer):
        inner = inner.by_heads()
    return {
        "norm1": (RESIDUAL,),
        "norm2": (RESIDUAL,),
        "ls1": (RESIDUAL,),
        "ls2": (RESIDUAL,),
        "attn.qkv": (replace(inner, copies=3), RESIDUAL),
        "attn.q_norm": (None,),
        "attn.k_norm": (None,),
        "attn.norm": (inner,),
        "attn.proj": (RESIDUAL, inner),
        "mlp.fc1": (replace(hidden, copies=gates(layer.mlp)), RESIDUAL),
        "mlp.norm": (hidden,),
        "mlp.fc2": (RESIDUAL, hidden),
    }.get(part)
