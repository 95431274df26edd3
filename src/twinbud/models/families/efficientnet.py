"""EfficientNet, MobileNet and their relatives: inverted residuals, as timm's two classes build them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from timm.models._efficientnet_blocks import (
    ConvBnAct,
    DepthwiseSeparableConv,
    EdgeResidual,
    InvertedResidual,
    UniversalInvertedResidual,
)
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn

from twinbud.models.families.base import Branch, LinearMap, NetworkShape, RecoverySupport, TimmModel
from twinbud.models.families.convolutional import (
    ConvolutionalFamily,
    MapRecovery,
    SpecCollector,
    in_order,
    is_described,
)
from twinbud.models.widths import Axis, TensorSpec, divided_sizes

HEAD = "head"
"""Name of the last convolution with its norm, as a block."""


class BlockLayer(NamedTuple):
    """A convolution of a block and its batch norm.

    Attributes:
        convolution: Its name inside the block.
        norm: That of its norm.
        inputs: What its inputs run along: the run before the block, the one after it, or the expansion between them.
        outputs: The same for its outputs.
    """

    convolution: str
    norm: str
    inputs: Literal["before", "inner", "after"]
    outputs: Literal["before", "inner", "after"]


_LAYERS: dict[type[nn.Module], tuple[BlockLayer, ...]] = {
    ConvBnAct: (BlockLayer("conv", "bn1", "before", "after"),),
    DepthwiseSeparableConv: (
        BlockLayer("conv_dw", "bn1", "before", "before"),
        BlockLayer("conv_pw", "bn2", "before", "after"),
    ),
    InvertedResidual: (
        BlockLayer("conv_pw", "bn1", "before", "inner"),
        BlockLayer("conv_dw", "bn2", "inner", "inner"),
        BlockLayer("conv_pwl", "bn3", "inner", "after"),
    ),
    EdgeResidual: (
        BlockLayer("conv_exp", "bn1", "before", "inner"),
        BlockLayer("conv_pwl", "bn2", "inner", "after"),
    ),
    UniversalInvertedResidual: (
        BlockLayer("dw_start.conv", "dw_start.bn", "before", "before"),
        BlockLayer("pw_exp.conv", "pw_exp.bn", "before", "inner"),
        BlockLayer("dw_mid.conv", "dw_mid.bn", "inner", "inner"),
        BlockLayer("pw_proj.conv", "pw_proj.bn", "inner", "after"),
        BlockLayer("dw_end.conv", "dw_end.bn", "after", "after"),
    ),
}
"""The layers of each block that timm builds, in order; in MobileNetV4's, the depthwise ones are optional."""
_SQUEEZED: dict[type[nn.Module], Literal["before", "inner"]] = {
    DepthwiseSeparableConv: "before",
    InvertedResidual: "inner",
    EdgeResidual: "inner",
    UniversalInvertedResidual: "inner",
}
"""What the squeeze-excite of each block runs along."""
_POOLED_HEAD = ("global_pool", "conv_head", "norm_head", "act2")
"""The end of timm's MobileNetV3, which pools before its last convolution."""


class EfficientNetRecovery(MapRecovery):
    """The map after the stem, after each block, and after the last convolution; depthwise layers keep their weights."""

    def embed(self, model: TimmModel, images_BCSS: torch.Tensor) -> torch.Tensor:
        """Return (B, D, H, W), the stem's output."""
        return model.bn1(model.conv_stem(images_BCSS))

    def layer_name(self, model: TimmModel, block: str, linear: str) -> str:
        """Return the full name; the layers of the head are the network's own."""
        return linear if block == HEAD else super().layer_name(model, block, linear)

    def branches(self, block: TimmModel) -> tuple[Branch, ...]:
        """Return the block as one branch: the convolutions that mix channels."""
        if isinstance(block, nn.Sequential):
            norm = next((name for name in ("bn2", "norm_head") if hasattr(block, name)), None)
            linears = (LinearMap(name="conv_head", norm=norm),)
            return (Branch(forward=in_order(block, "act2"), linears=linears, has_shortcut=False),)
        layers = _layers(block)
        linears = tuple(
            LinearMap(
                name=layer.convolution, norm=layer.norm, writes=layer == layers[-1] and _ends_linear(block, layer)
            )
            for layer in layers
            if layer.inputs != layer.outputs
        )
        return (Branch(forward=block, linears=linears, has_shortcut=getattr(block, "has_skip", False)),)


def _ends_linear(block: TimmModel, last: BlockLayer) -> bool:
    """Return whether the block writes what its last batch norm gives: no activation or LayerScale follows."""
    is_scaled = not isinstance(getattr(block, "layer_scale", None) or nn.Identity(), nn.Identity)
    return not is_scaled and isinstance(block.get_submodule(last.norm).act, nn.Identity)


class EfficientNetFamily(ConvolutionalFamily):
    """Widths: one per run of blocks that shortcuts join, expansion and squeeze width per block, and the head's.

    A depthwise convolution and its norm run along the width that they filter: the expansion, or the run before a
    depthwise-separable block.
    """

    name: ClassVar[str] = "EfficientNet"
    members: ClassVar[str] = "EfficientNet (with EfficientNetV2, MobileNetV2 to V4, MNASNet and their relatives)"
    recovery: ClassVar[RecoverySupport | None] = EfficientNetRecovery()
    pairs: ClassVar[tuple[tuple[str, str], ...]] = (
        ("tf_efficientnet_lite0.in1k", "half"),
        ("efficientnet_b1.ft_in1k", "efficientnet_b0"),
        ("tf_efficientnetv2_s.in21k", "half"),
        ("mobilenetv3_large_100.miil_in21k", "mobilenetv3_large_075"),
    )

    def owns(self, model: nn.Module) -> bool:
        """Return whether ``model`` is timm's EfficientNet or MobileNetV3 with layers whose widths are known."""
        return isinstance(model, EfficientNet | MobileNetV3) and is_described(self, model)

    def blocks(self, model: TimmModel) -> dict[str, nn.Module]:
        """Return the blocks of all stages, and the last convolution with its norm, before or after which timm pools."""
        blocks = _stage_blocks(model)
        if isinstance(model.conv_head, nn.Conv2d):
            names = ("conv_head", "bn2") if isinstance(model, EfficientNet) else _POOLED_HEAD
            layers = OrderedDict((name, model.get_submodule(name)) for name in names)
            blocks[HEAD] = nn.Sequential(
                OrderedDict((name, layer) for name, layer in layers.items() if not isinstance(layer, nn.Identity))
            )
        return blocks

    def specs(self, model: TimmModel) -> dict[str, TensorSpec]:
        """See ``SelectionFamily.specs``."""
        collector = SpecCollector(model, self.name)
        run, channels = Axis("run/conv_stem"), model.conv_stem.out_channels
        collector.convolution("conv_stem", run, None)
        collector.batch_norm("bn1", run)
        for name, block in _stage_blocks(model).items():
            after = run if getattr(block, "has_skip", False) else Axis(f"run/{name}")
            _add_block(collector, name, block, run, after)
            run, channels = after, _num_outputs(block)
        if isinstance(model.conv_head, nn.Conv2d):
            head, pooled = Axis("head"), Axis(run.width, copies=model.conv_head.in_channels // channels)
            collector.convolution("conv_head", head, pooled)
            norm = "bn2" if hasattr(model, "bn2") else "norm_head"
            if not isinstance(model.get_submodule(norm), nn.Identity):
                collector.batch_norm(norm, head)
            run, channels = head, model.conv_head.out_channels
        collector.classifier("classifier", run, channels)
        return collector.finish()

    def narrow_arguments(self, architecture: str, model: TimmModel, divisor: int) -> dict[str, Any]:
        """Return nothing: no argument of timm divides the widths; its multipliers round them to multiples of 8."""
        del architecture, model, divisor
        return {}

    def narrow_sizes(self, model: TimmModel, divisor: int) -> dict[str, int] | None:
        """Divide every width."""
        return divided_sizes(self.specs(model), model.state_dict(), divisor)

    def shape(self, model: TimmModel) -> NetworkShape:
        """See ``SelectionFamily.shape``."""
        return NetworkShape(
            depths=tuple(map(len, model.blocks)), widths=tuple(_num_outputs(stage[-1]) for stage in model.blocks)
        )


def _stage_blocks(model: TimmModel) -> dict[str, nn.Module]:
    stages = enumerate(model.blocks)
    return {f"blocks.{number}.{place}": block for number, stage in stages for place, block in enumerate(stage)}


def _num_outputs(block: TimmModel) -> int:
    return block.feature_info("bottleneck")["num_chs"]


def _add_block(collector: SpecCollector, name: str, block: TimmModel, before: Axis, after: Axis) -> None:
    """Add one block, from the run ``before`` it to the run ``after`` it.

    Raises:
        TwinbudError: It is a block whose widths are not known.
    """
    if not isinstance(getattr(block, "aa", None) or nn.Identity(), nn.Identity):
        raise collector.unknown(f"{name}.aa")  # the filter of a blur has channels, which are not a tensor of the state
    if getattr(block, "conv_s2d", None) is not None:
        raise collector.unknown(f"{name}.conv_s2d")
    layers = _layers(block)
    if not layers:
        raise collector.unknown(name)
    axes = {"before": before, "inner": Axis(f"expansion/{name}"), "after": after}
    for layer in layers:
        outputs = axes[layer.outputs]
        collector.convolution(f"{name}.{layer.convolution}", outputs, axes[layer.inputs], layer=name)
        collector.batch_norm(f"{name}.{layer.norm}", outputs, layer=name)
    if not isinstance(getattr(block, "layer_scale", None) or nn.Identity(), nn.Identity):
        collector.specs[f"{name}.layer_scale.gamma"] = TensorSpec((after,), "layer-scale", name)
    if type(block) in _SQUEEZED:
        collector.squeeze_excite(f"{name}.se", axes[_SQUEEZED[type(block)]], layer=name)


def _layers(block: TimmModel) -> tuple[BlockLayer, ...]:
    """Return the layers that the block has; none for a block that is not known."""
    return tuple(
        layer
        for layer in _LAYERS.get(type(block), ())
        if not isinstance(block.get_submodule(layer.convolution.partition(".")[0]), nn.Identity)
    )
