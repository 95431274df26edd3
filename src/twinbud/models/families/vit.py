"""ViT, DeiT and DINOv2: isotropic transformers with a class token, as timm's ``VisionTransformer`` builds them."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from twinbud.config.schema import Attention
from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import Family, LinearMap, State, TimmModel
from twinbud.models.widths import Axis, Role, TensorSpec

RESIDUAL = Axis("residual")
PREFIX_TOKENS = ("cls_token", "reg_token", "dist_token")
CLASSIFIERS = ("head", "head_dist")


class ViTFamily(Family):
    """Widths: one residual stream; attention inner (or heads) and MLP hidden of each block."""

    name: ClassVar[str] = "ViT"
    temperature: ClassVar[float] = 4.0
    drop_path: ClassVar[float] = 0.0

    def owns(self, model: TimmModel) -> bool:
        """timm's VisionTransformer and its subclasses (DeiT with a distillation token, for one)."""
        return isinstance(model, VisionTransformer)

    def specs(self, model: TimmModel, attention: Attention) -> dict[str, TensorSpec]:
        """See Family.specs."""
        return {name: _spec(model, name, tensor.dim(), attention) for name, tensor in model.state_dict().items()}

    def half(self, architecture: str, model: TimmModel) -> dict[str, Any]:
        """Half the width and half the heads, so that the head dimension stays."""
        heads = model.blocks[0].attn.num_heads
        if heads % 2:
            raise TwinbudError(
                "an even number of attention heads to halve",
                got=f"{heads}",
                where=architecture,
                fix="Name a student with --student",
            )
        return {"embed_dim": model.embed_dim // 2, "num_heads": heads // 2}

    def image_arguments(self, model: TimmModel, image_size: int, where: str) -> dict[str, Any]:
        """The position grid is built for one size, which the patch must divide."""
        patch = model.patch_embed.patch_size[0]
        if image_size % patch:
            below = max(patch, image_size // patch * patch)
            raise TwinbudError(
                f"an image size that the patch of {patch} pixels divides",
                got=f"{image_size}",
                where=where,
                fix=f"Use --image-size {below} or {below + patch}",
            )
        return {"img_size": image_size}

    def check_compatible(self, teacher: TimmModel, student: TimmModel) -> None:
        """The head dimension is never cut, and every prefix token needs a home."""
        student_blocks, teacher_blocks = student.blocks[0].attn.head_dim, teacher.blocks[0].attn.head_dim
        if student_blocks != teacher_blocks:
            raise TwinbudError(
                f"a student with the teacher's head dimension of {teacher_blocks}",
                got=f"{student_blocks}",
                where="--student",
                fix="Use --student half, or one with as many times fewer heads as it is narrower",
            )
        for part, count in (
            ("prefix tokens", lambda model: model.num_prefix_tokens),
            ("position slots of prefix tokens", _num_prefix_positions),
        ):
            if count(student) != count(teacher):
                raise TwinbudError(
                    f"a student with the teacher's {count(teacher)} {part}",
                    got=f"{count(student)}",
                    where="--student",
                    fix="Use --student half, which keeps them",
                )

    def fold_layer_scale(self, state: State, student_tensors: set[str]) -> tuple[State, dict[str, str]]:
        """ls1 goes into the attention's projection and ls2 into fc2: f(x)·γ = (γW)x + γb."""
        folded: dict[str, str] = {}
        result = dict(state)
        for name, gamma in state.items():
            match = re.fullmatch(r"(blocks\.\d+)\.(ls[12])\.gamma", name)
            if match is None or name in student_tensors:
                continue
            target = f"{match[1]}.{'attn.proj' if match[2] == 'ls1' else 'mlp.fc2'}"
            result[f"{target}.weight"] = state[f"{target}.weight"] * gamma[:, None]
            if f"{target}.bias" in state:
                result[f"{target}.bias"] = state[f"{target}.bias"] * gamma
            del result[name]
            folded[name] = target
        return result, folded

    def fit_positions(self, state: State, model: TimmModel) -> State:
        """Bicubic without antialiasing, which is how the teacher itself adapts to another image size."""
        grid = resample_abs_pos_embed(
            state["pos_embed"],
            new_size=list(model.patch_embed.grid_size),
            num_prefix_tokens=_num_prefix_positions(model),
            antialias=False,
        )
        return {**state, "pos_embed": grid}

    def embed(self, model: TimmModel, images_BCSS: torch.Tensor) -> torch.Tensor:
        """(B, L, D): patches and prefix tokens with their positions."""
        return model.norm_pre(model._pos_embed(model.patch_embed(images_BCSS)))

    def blocks(self, model: TimmModel) -> dict[str, nn.Module]:
        """See Family.blocks."""
        return {f"blocks.{number}": block for number, block in enumerate(model.blocks)}

    def spans(self, student: TimmModel, teacher: TimmModel) -> dict[str, list[str]]:
        """One for one; a shallower student's last block stands for the rest of the teacher too."""
        student_blocks, teacher_blocks = list(self.blocks(student)), list(self.blocks(teacher))
        return {name: [name] for name in student_blocks[:-1]} | {
            student_blocks[-1]: teacher_blocks[len(student_blocks) - 1 :]
        }

    def stream_width(self, block: str) -> str:
        """The same everywhere."""
        del block
        return RESIDUAL.width

    def linear_maps(self, block: TimmModel) -> tuple[LinearMap, ...]:
        """Queries, keys and values; the attention's projection; both layers of the MLP.

        Raises:
            TwinbudError: A block that does not normalise before it attends.
        """
        if not hasattr(block, "ls1"):
            raise TwinbudError(
                "blocks that normalise first, as ViT's do",
                got=type(block).__name__,
                where="--recover",
                fix="Choose another teacher, or --recover none",
            )
        scales = [f"{name}.gamma" if hasattr(block.get_submodule(name), "gamma") else None for name in ("ls1", "ls2")]
        return (
            LinearMap(name="attn.qkv"),
            LinearMap(name="attn.proj", begins="norm1", ends="norm2", scale=scales[0]),
            LinearMap(name="mlp.fc1"),
            LinearMap(name="mlp.fc2", begins="norm2", scale=scales[1]),
        )

    def tokens(self, stream: torch.Tensor) -> torch.Tensor:
        """As it is."""
        return stream

    def finish(self, model: TimmModel, stream: torch.Tensor) -> torch.Tensor:
        """After the final norm; of models that pool first and normalise then, the stream as it is."""
        return model.norm(stream)


def _num_prefix_positions(model: TimmModel) -> int:
    return 0 if model.no_embed_class else model.num_prefix_tokens


def _spec(model: TimmModel, name: str, dimensions: int, attention: Attention) -> TensorSpec:
    """The spec of one tensor, from its name."""
    match = re.fullmatch(r"(blocks\.\d+)\.(.+)\.(weight|bias|gamma)", name)
    if match:
        axes = _block_axes(model, match[1], match[2], attention)
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
        "a ViT whose parts are all known",
        got=f"the tensor '{name}'",
        where=type(model).__name__,
        fix="Choose another teacher or student",
    )


def _block_axes(model: TimmModel, block: str, part: str, attention: Attention) -> tuple[Axis | None, ...] | None:
    """The axes of a part's weight; its bias runs along the first of them."""
    layer = model.get_submodule(block)
    head = layer.attn.head_dim if attention == "heads" else 1
    inner = Axis(f"{'heads' if attention == 'heads' else 'attention'}/{block}", unit=head)
    hidden = Axis(f"mlp/{block}")
    # a packed SwiGLU stacks its gate and its value, so that fc1 puts out twice what fc2 takes in
    gates = layer.mlp.fc1.out_features // layer.mlp.fc2.in_features
    return {
        "norm1": (RESIDUAL,),
        "norm2": (RESIDUAL,),
        "ls1": (RESIDUAL,),
        "ls2": (RESIDUAL,),
        "attn.qkv": (Axis(inner.width, copies=3, unit=head), RESIDUAL),
        "attn.q_norm": (None,),
        "attn.k_norm": (None,),
        "attn.norm": (inner,),
        "attn.proj": (RESIDUAL, inner),
        "mlp.fc1": (Axis(hidden.width, copies=gates), RESIDUAL),
        "mlp.norm": (hidden,),
        "mlp.fc2": (RESIDUAL, hidden),
    }.get(part)
