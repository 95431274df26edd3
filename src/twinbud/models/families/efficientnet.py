"""EfficientNet, MobileNet and their relatives: inverted residuals, as timm's two classes build them."""

from __future__ import annotations

from typing import Any, ClassVar

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

from twinbud.models.families.base import NetworkShape, TimmModel
from twinbud.models.families.convolutional import ConvolutionalFamily, SpecCollector, is_described
from twinbud.models.widths import Axis, TensorSpec, half_sizes


class EfficientNetFamily(ConvolutionalFamily):
    """Widths: one per run of blocks that shortcuts join, expansion and squeeze width per block, and the head's.

    A depthwise convolution and its norm run along the width that they filter: the expansion, or the run before a
    depthwise-separable block.
    """

    name: ClassVar[str] = "EfficientNet"
    members: ClassVar[str] = "EfficientNet (with EfficientNetV2, MobileNetV2 to V4, MNASNet and their relatives)"
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
        """Return the blocks of all stages."""
        stages = enumerate(model.blocks)
        return {f"blocks.{number}.{place}": block for number, stage in stages for place, block in enumerate(stage)}

    def specs(self, model: TimmModel) -> dict[str, TensorSpec]:
        """See ``SelectionFamily.specs``."""
        collector = SpecCollector(model, self.name)
        run, channels = Axis("run/conv_stem"), model.conv_stem.out_channels
        collector.convolution("conv_stem", run, None)
        collector.batch_norm("bn1", run)
        for name, block in self.blocks(model).items():
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

    def half(self, architecture: str, model: TimmModel) -> dict[str, Any]:
        """Return nothing: no argument of timm halves the widths; its multipliers round them to multiples of 8."""
        del architecture, model
        return {}

    def half_sizes(self, model: TimmModel) -> dict[str, int] | None:
        """Halve every width."""
        return half_sizes(self.specs(model), model.state_dict())

    def shape(self, model: TimmModel) -> NetworkShape:
        """See ``SelectionFamily.shape``."""
        return NetworkShape(
            depths=tuple(map(len, model.blocks)), widths=tuple(_num_outputs(stage[-1]) for stage in model.blocks)
        )


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
    if type(block) is ConvBnAct:
        layers = (("conv", "bn1", after, before),)
        squeezed = None
    elif type(block) is DepthwiseSeparableConv:
        layers = (("conv_dw", "bn1", before, before), ("conv_pw", "bn2", after, before))
        squeezed = before
    elif type(block) is InvertedResidual:
        squeezed = Axis(f"expansion/{name}")
        layers = (
            ("conv_pw", "bn1", squeezed, before),
            ("conv_dw", "bn2", squeezed, squeezed),
            ("conv_pwl", "bn3", after, squeezed),
        )
    elif type(block) is EdgeResidual:
        squeezed = Axis(f"expansion/{name}")
        layers = (("conv_exp", "bn1", squeezed, before), ("conv_pwl", "bn2", after, squeezed))
    elif type(block) is UniversalInvertedResidual:
        squeezed = Axis(f"expansion/{name}")
        layers = _universal_layers(block, before, squeezed, after)
        if not isinstance(block.layer_scale, nn.Identity):
            collector.specs[f"{name}.layer_scale.gamma"] = TensorSpec((after,), "layer-scale", name)
    else:
        raise collector.unknown(name)
    for convolution, norm, outputs, inputs in layers:
        collector.convolution(f"{name}.{convolution}", outputs, inputs, layer=name)
        collector.batch_norm(f"{name}.{norm}", outputs, layer=name)
    if squeezed is not None:
        collector.squeeze_excite(f"{name}.se", squeezed, layer=name)


def _universal_layers(
    block: TimmModel, before: Axis, expansion: Axis, after: Axis
) -> tuple[tuple[str, str, Axis, Axis], ...]:
    """Return the convolutions and norms of MobileNetV4's block, whose depthwise convolutions are optional."""
    widths = {
        "dw_start": (before, before),
        "pw_exp": (expansion, before),
        "dw_mid": (expansion, expansion),
        "pw_proj": (after, expansion),
        "dw_end": (after, after),
    }
    return tuple(
        (f"{part}.conv", f"{part}.bn", outputs, inputs)
        for part, (outputs, inputs) in widths.items()
        if not isinstance(block.get_submodule(part), nn.Identity)
    )
