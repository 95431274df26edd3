"""ConvNeXt: a hierarchical convolutional net in four stages, as timm's ``ConvNeXt`` builds it."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import torch
from timm.models.convnext import ConvNeXt
from torch import nn

from twinbud.config.schema import Attention
from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import Family, LinearMap, TimmModel
from twinbud.models.widths import Axis, Role, TensorSpec

PAIR_DEPTHS = {"convnext_tiny": (2, 2, 6, 2)}
"""Depths of the paper's ConvNeXt student (Table 1): half of ConvNeXt-T is ConvNeXt-F."""


class ConvNeXtFamily(Family):
    """Widths: one a stage, and the MLP hidden of each block."""

    name: ClassVar[str] = "ConvNeXt"
    temperature: ClassVar[float] = 3.0
    drop_path: ClassVar[float] = 0.1
    memory_format: ClassVar[torch.memory_format] = torch.channels_last

    def owns(self, model: TimmModel) -> bool:
        """timm's ConvNeXt, both versions."""
        return isinstance(model, ConvNeXt)

    def specs(self, model: TimmModel, attention: Attention) -> dict[str, TensorSpec]:
        """See Family.specs; there is no attention to cut."""
        del attention
        return {name: _spec(model, name, tensor.dim()) for name, tensor in model.state_dict().items()}

    def half(self, architecture: str, model: TimmModel) -> dict[str, Any]:
        """Half of every stage's width."""
        dims = [stage.blocks[0].conv_dw.out_channels for stage in model.stages]
        own_depths = [len(stage.blocks) for stage in model.stages]
        pair_depths = PAIR_DEPTHS.get(architecture.partition(".")[0], own_depths)
        # a teacher that was saved with fewer blocks than its name says has no more to give
        depths = [min(pair) for pair in zip(pair_depths, own_depths, strict=True)]
        return {"dims": [width // 2 for width in dims], "depths": depths} | self.form_arguments(model)

    def form_arguments(self, teacher: TimmModel) -> dict[str, Any]:
        """timm's smaller ConvNeXts write their MLPs as 1×1 convolutions; a student must share the teacher's form."""
        return {"conv_mlp": isinstance(teacher.stages[0].blocks[0].mlp.fc1, nn.Conv2d)}

    def image_arguments(self, model: TimmModel, image_size: int, where: str) -> dict[str, Any]:
        """Any size that leaves at least one position after the stem and three downsamplings."""
        del model
        if image_size < 32:
            raise TwinbudError("an image size of at least 32", got=f"{image_size}", where=where)
        return {}

    def embed(self, model: TimmModel, images_BCSS: torch.Tensor) -> torch.Tensor:
        """(B, D, H, W): what the stem makes of the images."""
        return model.stem(images_BCSS)

    def blocks(self, model: TimmModel) -> dict[str, nn.Module]:
        """Each stage's downsampling, where it has one, and its blocks."""
        found: dict[str, nn.Module] = {}
        for number, stage in enumerate(model.stages):
            if not isinstance(stage.downsample, nn.Identity):
                found[f"stages.{number}.downsample"] = stage.downsample
            found |= {f"stages.{number}.blocks.{place}": block for place, block in enumerate(stage.blocks)}
        return found

    def spans(self, student: TimmModel, teacher: TimmModel) -> dict[str, list[str]]:
        """One for one; the last block of a shallower stage stands for the rest of the teacher's stage too."""
        student_blocks, teacher_blocks = list(self.blocks(student)), list(self.blocks(teacher))
        is_last = [
            i + 1 == len(student_blocks) or student_blocks[i + 1].endswith("downsample")
            for i in range(len(student_blocks))
        ]
        spans: dict[str, list[str]] = {}
        for name, last in zip(student_blocks, is_last, strict=True):
            start = teacher_blocks.index(name)
            rest = [other for other in teacher_blocks[start:] if other.split(".")[1] == name.split(".")[1]]
            spans[name] = rest if last else [name]
        return spans

    def stream_width(self, block: str) -> str:
        """That of the block's stage."""
        return _stage(block.split(".")[1]).width

    def linear_maps(self, block: TimmModel) -> tuple[LinearMap, ...]:
        """Both layers of a block's MLP, or a downsampling's convolution; depthwise kernels mix no channels."""
        if isinstance(block, nn.Sequential):
            return (LinearMap(name="1"),)
        scale = "gamma" if block.gamma is not None else None
        return (LinearMap(name="mlp.fc1"), LinearMap(name="mlp.fc2", begins="conv_dw", scale=scale))

    def tokens(self, stream: torch.Tensor) -> torch.Tensor:
        """(B, D, H, W) to (B, H·W, D)."""
        return stream.flatten(2).transpose(1, 2)

    def finish(self, model: TimmModel, stream: torch.Tensor) -> torch.Tensor:
        """The last stage's map; its norm comes after pooling."""
        return model.norm_pre(stream)


def _stage(number: str | int) -> Axis:
    return Axis(f"stage/{number}")


def _spec(model: TimmModel, name: str, dimensions: int) -> TensorSpec:
    """The spec of one tensor, from its name."""
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
    if axes is None or kind not in ("weight", "bias", "gamma"):  # batch norm, which timm can put here, has more
        raise TwinbudError(
            "a ConvNeXt whose parts are all known",
            got=f"the tensor '{name}'",
            where=type(model).__name__,
            fix="Choose another teacher or student",
        )
    padded = axes[:1] if kind == "bias" else (*axes, *[None] * (dimensions - len(axes)))
    return TensorSpec(padded, role, layer)


def _block_axes(block: str, stage: str, part: str) -> tuple[Axis | None, ...] | None:
    """The axes of a part's weight; kernels follow uncut, and its bias runs along the first axis."""
    width, hidden = _stage(stage), Axis(f"mlp/{block}")
    return {
        "conv_dw": (width,),
        "norm": (width,),
        "mlp.fc1": (hidden, width),
        "mlp.grn": (hidden,),
        "mlp.fc2": (width, hidden),
        "gamma": (width,),
    }.get(part)
