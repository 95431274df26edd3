"""ConvNeXt: a hierarchical convolutional network in four stages, as timm's ``ConvNeXt`` builds it."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import torch
from timm.models.convnext import ConvNeXt
from torch import nn

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import Branch, LinearMap, NetworkShape, RecoverySupport, SelectionFamily, TimmModel
from twinbud.models.families.convolutional import MapRecovery
from twinbud.models.families.stages import stage_blocks, student_depths
from twinbud.models.widths import Axis, Role, TensorSpec

PAIR_DEPTHS = {"convnext_tiny": (2, 2, 6, 2)}
"""Depths of the paper's ConvNeXt student (Table 1): half of ConvNeXt-T is ConvNeXt-F."""
MIN_IMAGE_SIZE = 32
"""In pixels: one position remains after the stem and three downsampling layers."""


class ConvNeXtRecovery(MapRecovery):
    """One residual stream (B, D, H, W) per stage."""

    has_largest_stream_first: ClassVar[bool] = True

    def embed(self, model: TimmModel, images_BCSS: torch.Tensor) -> torch.Tensor:
        """Return (B, D, H, W), the stem's output."""
        return model.stem(images_BCSS)

    def branches(self, block: TimmModel) -> tuple[Branch, ...]:
        """Return the block as one branch: both layers of its MLP, or a downsampling convolution.

        Depthwise kernels mix no channels.
        """
        if isinstance(block, nn.Sequential):
            return (Branch(forward=block, linears=(LinearMap(name="1"),)),)
        scale = "gamma" if block.gamma is not None else None
        linears = (LinearMap(name="mlp.fc1"), LinearMap(name="mlp.fc2", writes=True, scale=scale))
        return (Branch(forward=block, linears=linears),)

    def finish(self, model: TimmModel, stream: torch.Tensor) -> torch.Tensor:
        """Return the last stage's map; its norm comes after pooling unless the model has ``norm_pre``."""
        return model.norm_pre(stream)


class ConvNeXtFamily(SelectionFamily):
    """Widths: one per stage, and the MLP's hidden width in each block."""

    name: ClassVar[str] = "ConvNeXt"
    members: ClassVar[str] = "ConvNeXt"
    temperature: ClassVar[float] = 3.0
    drop_path: ClassVar[float] = 0.1
    memory_format: ClassVar[torch.memory_format] = torch.channels_last
    recovery: ClassVar[RecoverySupport | None] = ConvNeXtRecovery()
    pairs: ClassVar[tuple[tuple[str, str], ...]] = (
        ("convnext_tiny.fb_in22k", "convnext_femto"),
        ("convnextv2_tiny", "half"),
    )

    def owns(self, model: nn.Module) -> bool:
        """Return whether ``model`` is timm's ConvNeXt (V1 or V2)."""
        return isinstance(model, ConvNeXt)

    def blocks(self, model: TimmModel) -> dict[str, nn.Module]:
        """Return the downsampling layer, if any, and the blocks of each stage."""
        return stage_blocks("stages", model.stages)

    def specs(self, model: TimmModel) -> dict[str, TensorSpec]:
        """See ``SelectionFamily.specs``."""
        return {name: _spec(model, name, tensor.dim()) for name, tensor in model.state_dict().items()}

    def narrow_arguments(self, architecture: str, model: TimmModel, divisor: int) -> dict[str, Any]:
        """Divide the width of every stage."""
        shape = self.shape(model)
        depths = student_depths(architecture, shape.depths, PAIR_DEPTHS)
        return {"dims": [width // divisor for width in shape.widths], "depths": depths} | self.form_arguments(model)

    def shape(self, model: TimmModel) -> NetworkShape:
        """See ``SelectionFamily.shape``."""
        stages = list(model.stages)
        return NetworkShape(
            depths=tuple(len(stage.blocks) for stage in stages),
            widths=tuple(stage.blocks[0].conv_dw.out_channels for stage in stages),
        )

    def form_arguments(self, teacher: TimmModel) -> dict[str, Any]:
        """Keep the teacher's kind of MLP: timm's smaller ConvNeXts use 1×1 convolutions, its larger ones linear."""
        return {"conv_mlp": isinstance(teacher.stages[0].blocks[0].mlp.fc1, nn.Conv2d)}

    def image_arguments(self, model: TimmModel, image_size: int, where: str) -> dict[str, Any]:
        """Accept any size of at least ``MIN_IMAGE_SIZE``; no timm argument depends on it.

        Raises:
            TwinbudError: The size is smaller.
        """
        del model
        if image_size < MIN_IMAGE_SIZE:
            raise TwinbudError(
                f"ConvNeXt cannot process images of {image_size} pixels",
                where=where,
                fix=f"Use --image-size {MIN_IMAGE_SIZE} or more",
            )
        return {}


def _stage(number: str | int) -> Axis:
    return Axis(f"stage/{number}")


def _spec(model: TimmModel, name: str, dimensions: int) -> TensorSpec:
    """Return the spec of the tensor ``name``.

    Raises:
        TwinbudError: No width is defined for it.
    """
    axes: tuple[Axis | None, ...] | None = None
    role: Role = "weight"
    layer: str | None = None
    part, _, kind = name.rpartition(".")
    if match := re.fullmatch(r"(stages\.(\d+)\.blocks\.\d+)(?:\.(.+))?", part):
        axes = _block_axes(match[1], match[2], match[3] or kind)
        role = "layer-scale" if kind == "gamma" else "weight"
        layer = match[1]
    elif match := re.fullmatch(r"stages\.(\d+)\.downsample\.([01])", part):
        before, here = _stage(int(match[1]) - 1), _stage(match[1])
        axes = (before,) if match[2] == "0" else (here, before)
    elif part == "stem.0":
        axes, role = (_stage(0),), "patch" if kind == "weight" else "weight"
    elif part == "stem.1":
        axes = (_stage(0),)
    elif part in ("norm_pre", "head.norm"):
        axes = (_stage(len(model.stages) - 1),)
    elif part == "head.fc":
        axes, role = (None, _stage(len(model.stages) - 1)), "classifier"
    if axes is None or kind not in ("weight", "bias", "gamma"):  # timm can build it with batch norm, which has buffers
        raise TwinbudError(
            f"{type(model).__name__} has tensor '{name}', for which no width is defined",
            where="selection from a ConvNeXt",
            fix="Choose another teacher or student",
        )
    padded = axes[:1] if kind == "bias" else (*axes, *[None] * (dimensions - len(axes)))
    return TensorSpec(padded, role, layer)


def _block_axes(block: str, stage: str, part: str) -> tuple[Axis | None, ...] | None:
    """Return the axes of a part's weight; kernel dimensions follow whole, and the bias runs along the first axis."""
    width, hidden = _stage(stage), Axis(f"mlp/{block}")
    return {
        "conv_dw": (width,),
        "norm": (width,),
        "mlp.fc1": (hidden, width),
        "mlp.grn": (hidden,),
        "mlp.fc2": (width, hidden),
        "gamma": (width,),
    }.get(part)
