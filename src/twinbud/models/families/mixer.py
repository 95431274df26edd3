"""MLP-Mixer, ResMLP and gMLP: isotropic networks without attention, as timm's ``MlpMixer`` builds them."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import torch
from timm.models.mlp_mixer import MixerBlock, MlpMixer, ResBlock, SpatialGatingBlock
from torch import nn

from twinbud.config.schema import Attention
from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import Branch, LinearMap, NetworkShape, RecoverySupport, SelectionFamily, TimmModel
from twinbud.models.families.isotropic import RESIDUAL, IsotropicRecovery
from twinbud.models.widths import Axis, Role, TensorSpec, divided_sizes

HALVES = {
    "mixer_l16_224": "mixer_s16_224",
    "mixer_l32_224": "mixer_s32_224",
    "gmlp_b16_224": "gmlp_s16_224",
    "gmlp_s16_224": "gmlp_ti16_224",
}
"""timm's network of half the width, for each network that has one: timm's names take no width as an argument."""


class MixerRecovery(IsotropicRecovery):
    """One residual stream (B, L, D)."""

    def embed(self, model: TimmModel, images_BCSS: torch.Tensor) -> torch.Tensor:
        """Return (B, L, D), the patch embeddings."""
        return model.stem(images_BCSS)

    def branches(self, block: TimmModel) -> tuple[Branch, ...]:
        """Return the mixing of positions, in which no layer mixes channels, and the MLP over channels (both layers).

        A block of gMLP is one branch: its MLP mixes positions inside.

        Raises:
            TwinbudError: The block is none of timm's.
        """
        fc1 = LinearMap(name="mlp_channels.fc1")
        if isinstance(block, SpatialGatingBlock):
            forward = lambda stream: stream + block.mlp_channels(block.norm(stream))  # noqa: E731
            return (Branch(forward=forward, linears=(fc1, LinearMap(name="mlp_channels.fc2", writes=True))),)
        if isinstance(block, MixerBlock):
            return (
                Branch(
                    forward=lambda stream: (
                        stream + block.mlp_tokens(block.norm1(stream).transpose(1, 2)).transpose(1, 2)
                    )
                ),
                Branch(
                    forward=lambda stream: stream + block.mlp_channels(block.norm2(stream)),
                    linears=(fc1, LinearMap(name="mlp_channels.fc2", writes=True)),
                ),
            )
        if isinstance(block, ResBlock):
            return (
                Branch(
                    forward=lambda stream: (
                        stream + block.ls1 * block.linear_tokens(block.norm1(stream).transpose(1, 2)).transpose(1, 2)
                    )
                ),
                Branch(
                    forward=lambda stream: stream + block.ls2 * block.mlp_channels(block.norm2(stream)),
                    linears=(fc1, LinearMap(name="mlp_channels.fc2", writes=True, scale="ls2")),
                ),
            )
        raise TwinbudError(
            f"recovery does not support {type(block).__name__}, only the blocks of MLP-Mixer, ResMLP and gMLP",
            where="--recover",
            fix="Choose another teacher, or --recover none",
        )


class MixerFamily(SelectionFamily):
    """Widths: one residual stream; in each block the hidden widths of both MLPs. Positions are kept whole."""

    name: ClassVar[str] = "Mixer"
    members: ClassVar[str] = "MLP-Mixer (with ResMLP and gMLP)"
    temperature: ClassVar[float] = 4.0
    drop_path: ClassVar[float] = 0.0
    has_fixed_image_size: ClassVar[bool] = True
    recovery: ClassVar[RecoverySupport | None] = MixerRecovery()
    pairs: ClassVar[tuple[tuple[str, str], ...]] = (
        ("mixer_l16_224.goog_in21k", "mixer_s16_224"),
        ("resmlp_24_224.fb_in1k", "half"),
        ("gmlp_s16_224.ra3_in1k", "half"),
    )

    def owns(self, model: nn.Module) -> bool:
        """Return whether ``model`` is timm's MlpMixer."""
        return isinstance(model, MlpMixer)

    def blocks(self, model: TimmModel) -> dict[str, nn.Module]:
        """Return the blocks."""
        return {f"blocks.{number}": block for number, block in enumerate(model.blocks)}

    def specs(self, model: TimmModel) -> dict[str, TensorSpec]:
        """See ``SelectionFamily.specs``."""
        return {name: _spec(model, name, tensor.dim()) for name, tensor in model.state_dict().items()}

    def narrow_name(self, architecture: str, divisor: int) -> str:
        """Return timm's network of half the width, or the teacher's own name, whose tensors are then narrowed."""
        return HALVES.get(architecture, architecture) if divisor == 2 else architecture

    def narrow_arguments(self, architecture: str, model: TimmModel, divisor: int) -> dict[str, Any]:
        """Return the image size; the name gives the width."""
        del architecture, divisor
        return self.form_arguments(model)

    def narrow_sizes(self, model: TimmModel, divisor: int) -> dict[str, int]:
        """Divide the residual width and all hidden widths."""
        return divided_sizes(self.specs(model), model.state_dict(), divisor)

    def shape(self, model: TimmModel) -> NetworkShape:
        """See ``SelectionFamily.shape``."""
        return NetworkShape(depths=(len(model.blocks),), widths=(model.embed_dim,))

    def form_arguments(self, teacher: TimmModel) -> dict[str, Any]:
        """Keep the teacher's image size."""
        return {"img_size": teacher.stem.img_size[0]}

    def image_arguments(self, model: TimmModel, image_size: int, where: str) -> dict[str, Any]:
        """Return ``img_size``, which is part of the weights.

        Raises:
            TwinbudError: The network has another one.
        """
        height, width = model.stem.img_size
        if (height, width) != (image_size, image_size):
            raise TwinbudError(
                f"{where} takes images of {height} × {width} pixels alone, since its weights mix their positions;"
                f" {image_size} is given",
                where="--image-size",
                fix=f"Use --image-size {height}" if height == width else "Choose another teacher",
            )
        return {"img_size": image_size}

    def check_compatible(self, teacher: TimmModel, student: TimmModel, attention: Attention) -> None:
        """Require that both divide an image into the same positions, which selection keeps whole.

        Raises:
            TwinbudError: They do not.
        """
        del attention
        student_grid, teacher_grid = (model.stem.grid_size for model in (student, teacher))
        if student_grid != teacher_grid:
            texts = [
                f"{model.stem.img_size[0]} pixels in {model.stem.num_patches} positions" for model in (student, teacher)
            ]
            raise TwinbudError(
                f"the student takes images of {texts[0]}, the teacher of {texts[1]}",
                where="--student",
                fix="Choose a student with the teacher's patch size, and give the teacher as a folder (local-dir:)"
                " whose config.json has its img_size",
            )


def _spec(model: TimmModel, name: str, dimensions: int) -> TensorSpec:
    """Return the spec of the tensor ``name``.

    Raises:
        TwinbudError: No width is defined for it.
    """
    part, _, kind = name.rpartition(".")
    norm = {"weight": (RESIDUAL,), "bias": (RESIDUAL,), "alpha": (None, None, RESIDUAL), "beta": (None, None, RESIDUAL)}
    if match := re.fullmatch(r"(blocks\.\d+)\.(?:(.+)\.)?(.+)", name):
        axes = _block_axes(model, match[1], match[2] or match[3])
        if (match[2] or "").startswith("norm"):
            axes = norm.get(kind)
        if axes is not None:
            role: Role = "layer-scale" if match[3] in ("ls1", "ls2") else "weight"
            return TensorSpec(axes[:1] if kind == "bias" else axes, role, layer=match[1])
    if name == "stem.proj.weight":
        return TensorSpec((RESIDUAL, None, None, None), "patch")
    if name == "stem.proj.bias":
        return TensorSpec((RESIDUAL,))
    if part in ("stem.norm", "norm") and kind in norm:
        return TensorSpec(norm[kind])
    if part == "head":
        return TensorSpec((None, RESIDUAL)[:dimensions], "classifier")
    raise TwinbudError(
        f"{type(model).__name__} has tensor '{name}', for which no width is defined",
        where="selection from a Mixer",
        fix="Choose another teacher or student",
    )


def _block_axes(model: TimmModel, block: str, part: str) -> tuple[Axis | None, ...] | None:
    """Return the axes of a part's weight; its bias runs along the first of them. Norms are not among the parts."""
    if part == "linear_tokens":
        return (None, None)
    if part in ("ls1", "ls2"):
        return (RESIDUAL,)
    mlp, _, inner = part.partition(".")
    if mlp not in ("mlp_tokens", "mlp_channels"):
        return None
    ends, kind = (RESIDUAL, "mlp") if mlp == "mlp_channels" else (None, "token-mlp")
    hidden = Axis(f"{kind}/{block}")
    layer = model.get_submodule(f"{block}.{mlp}")
    # a gate is half of fc1's outputs: fc1 has twice the outputs that fc2 has inputs
    gates = layer.fc1.out_features // layer.fc2.in_features
    return {
        "fc1": (Axis(hidden.width, copies=gates), ends),
        "norm": (hidden,),
        "gate.norm": (hidden,),
        "gate.proj": (None, None),
        "fc2": (ends, hidden),
    }.get(inner)
