"""ResNet with basic and bottleneck blocks: also ResNeXt, wide and squeeze-excite variants, as timm's ``ResNet``."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from timm.layers.blur_pool import BlurPool2d
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import (
    Branch,
    LinearMap,
    NetworkShape,
    RecoverySupport,
    TimmModel,
)
from twinbud.models.families.convolutional import ConvolutionalFamily, MapRecovery, SpecCollector, is_described
from twinbud.models.widths import Axis, TensorSpec, divided_sizes

STAGES = ("layer1", "layer2", "layer3", "layer4")
STEM = "stem"
"""Kind of the widths before the first stage, which stay as they are."""


class ResNetRecovery(MapRecovery):
    """The map after the stem and after each block. Grouped convolutions keep their selected weights."""

    def embed(self, model: TimmModel, images_BCSS: torch.Tensor) -> torch.Tensor:
        """Return (B, D, H, W), the stem's output."""
        return model.maxpool(model.act1(model.bn1(model.conv1(images_BCSS))))

    def branches(self, block: TimmModel) -> tuple[Branch, ...]:
        """Return the block as one branch: its convolutions, before the batch norms, and that of its shortcut."""
        layers = {
            name: layer
            for name, layer in block.named_modules()
            if isinstance(layer, nn.Conv2d) and layer.groups == 1 and not name.startswith("se.")
        }
        return (Branch(forward=block, linears=tuple(LinearMap(name=name) for name in layers)),)


class ResNetFamily(ConvolutionalFamily):
    """Widths: one per stage with its shortcuts, and the inner widths of each block.

    Where the first block has no convolution in its shortcut, the stem's output is a part of the first stage's width.
    In a grouped convolution, the channels of each group are indexed alike, so that every group becomes narrower. The
    stem is not cut otherwise: timm's ``channels`` keeps it whole too.
    """

    name: ClassVar[str] = "ResNet"
    members: ClassVar[str] = "ResNet (with ResNeXt, wide and squeeze-excite variants)"
    recovery: ClassVar[RecoverySupport | None] = ResNetRecovery()
    pairs: ClassVar[tuple[tuple[str, str], ...]] = (
        ("resnet50.a1_in1k", "half"),
        ("resnet34.a1_in1k", "resnet18"),
        ("resnet18.a1_in1k", "half"),
        ("resnext50_32x4d.a1_in1k", "half"),
        ("seresnet50.a1_in1k", "half"),
    )

    def owns(self, model: nn.Module) -> bool:
        """Return whether ``model`` is timm's ResNet with layers whose widths are known.

        Channel attention other than squeeze-excite mixes neighboring channels (ECA) or has no widths of its own.
        """
        return isinstance(model, ResNet) and is_described(self, model)

    def blocks(self, model: TimmModel) -> dict[str, nn.Module]:
        """Return the residual blocks."""
        stages = {stage: model.get_submodule(stage) for stage in STAGES}
        return {f"{name}.{place}": block for name, stage in stages.items() for place, block in enumerate(stage)}

    def specs(self, model: TimmModel) -> dict[str, TensorSpec]:
        """See ``SelectionFamily.specs``."""
        collector = SpecCollector(model, self.name)
        width = _add_stem(collector, model)
        for name, block in self.blocks(model).items():
            stage, _, place = name.partition(".")
            before = width
            if place == "0" and block.downsample is not None:
                width = Axis(f"stage/{stage.removeprefix('layer')}")
            _add_block(collector, name, block, before, width)
        collector.classifier("fc", width, _num_outputs(model.layer4[-1]))
        return collector.finish()

    def narrow_arguments(self, architecture: str, model: TimmModel, divisor: int) -> dict[str, Any]:
        """Divide the channels of every stage, and of a deep stem that shares the first stage's width."""
        del architecture
        arguments: dict[str, Any] = {"channels": [width // divisor for width in _planes(model)]}
        if _is_deep(model) and _shares_stem(model):
            arguments["stem_width"] = model.conv1[3].out_channels // divisor
        return arguments

    def narrow_sizes(self, model: TimmModel, divisor: int) -> dict[str, int] | None:
        """Return the sizes where the stem, which no argument of timm makes narrower, is a part of the first stage.

        Raises:
            TwinbudError: The network blurs its maps.
        """
        first = model.layer1[0]
        # timm adds a convolution to the first shortcut if stem and stage differ, and only then
        timm_shares = _num_outputs(first) // divisor == first.conv1.in_channels
        if timm_shares == _shares_stem(model) or (_is_deep(model) and _shares_stem(model)):
            return None
        if any(isinstance(module, BlurPool2d) for module in model.modules()):  # keeps its number of channels
            raise TwinbudError(
                f"a ResNet that blurs cannot have widths divided by {divisor}: timm has no arguments for it",
                where="--student",
                fix="Choose a teacher without blur, such as resnet18"
                + (", or use --student half" if divisor != 2 and not _shares_stem(model) else ""),
            )
        sizes = divided_sizes(self.specs(model), model.state_dict(), divisor)
        return {width: size for width, size in sizes.items() if width.partition("/")[0] != STEM}

    def shape(self, model: TimmModel) -> NetworkShape:
        """See ``SelectionFamily.shape``."""
        stages = [model.get_submodule(stage) for stage in STAGES]
        return NetworkShape(depths=tuple(map(len, stages)), widths=tuple(_num_outputs(stage[-1]) for stage in stages))


def _is_deep(model: TimmModel) -> bool:
    """Return whether the stem has three convolutions."""
    return isinstance(model.conv1, nn.Sequential)


def _shares_stem(model: TimmModel) -> bool:
    """Return whether the first block adds the stem's output to its own."""
    return model.layer1[0].downsample is None


def _num_outputs(block: TimmModel) -> int:
    return (block.conv2 if isinstance(block, BasicBlock) else block.conv3).out_channels


def _planes(model: TimmModel) -> list[int]:
    """Return timm's ``channels``: the outputs of each stage over the expansion of its blocks."""
    last = [model.get_submodule(stage)[-1] for stage in STAGES]
    return [_num_outputs(block) // block.expansion for block in last]


def _add_stem(collector: SpecCollector, model: TimmModel) -> Axis:
    """Add the layers before the first stage, and return the width of their output."""
    end = Axis("stage/1") if _shares_stem(model) else Axis(STEM)
    convolves_pool = isinstance(model.maxpool, nn.Sequential) and isinstance(model.maxpool[0], nn.Conv2d)
    width = Axis(f"{STEM}/conv1") if convolves_pool else end
    if _is_deep(model):
        first, second = Axis(f"{STEM}/conv1.0"), Axis(f"{STEM}/conv1.3")
        collector.convolution("conv1.0", first, None)
        collector.batch_norm("conv1.1", first)
        collector.convolution("conv1.3", second, first)
        collector.batch_norm("conv1.4", second)
        collector.convolution("conv1.6", width, second)
    else:
        collector.convolution("conv1", width, None)
    collector.batch_norm("bn1", width)
    if convolves_pool:
        collector.sequence("maxpool", end, width)
    return end


def _add_block(collector: SpecCollector, name: str, block: TimmModel, before: Axis, width: Axis) -> None:
    """Add one residual block, from the width ``before`` it to its own.

    Raises:
        TwinbudError: The block is not one of timm's two.
    """
    if type(block) is BasicBlock:
        inner = Axis(f"inner/{name}")
        collector.convolution(f"{name}.conv1", inner, before, layer=name)
        collector.batch_norm(f"{name}.bn1", inner, layer=name)
        collector.convolution(f"{name}.conv2", width, inner, layer=name)
        collector.batch_norm(f"{name}.bn2", width, layer=name)
    elif type(block) is Bottleneck:
        groups = block.conv2.groups
        inner, outer = Axis(f"inner/{name}.conv1"), Axis(f"inner/{name}.conv2")
        # the channels of every group are indexed alike
        inner_groups, outer_groups = (Axis(axis.width, copies=groups) for axis in (inner, outer))
        collector.convolution(f"{name}.conv1", inner_groups, before, layer=name)
        collector.batch_norm(f"{name}.bn1", inner_groups, layer=name)
        collector.grouped_convolution(f"{name}.conv2", outer_groups, inner, layer=name)
        collector.batch_norm(f"{name}.bn2", outer_groups, layer=name)
        collector.convolution(f"{name}.conv3", width, outer_groups, layer=name)
        collector.batch_norm(f"{name}.bn3", width, layer=name)
    else:
        raise collector.unknown(name)
    if block.downsample is not None:
        collector.sequence(f"{name}.downsample", width, before, layer=name)
    if block.se is not None:
        collector.squeeze_excite(f"{name}.se", width, layer=name)
