"""VGG with and without batch norm: a chain of convolutions in five stages, as timm's ``VGG`` builds it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from timm.models.vgg import VGG
from torch import nn

from twinbud.models.families.base import (
    Branch,
    LinearMap,
    NetworkShape,
    RecoverySupport,
    TimmModel,
)
from twinbud.models.families.convolutional import ConvolutionalFamily, MapRecovery, SpecCollector, in_order
from twinbud.models.widths import Axis, TensorSpec, divided_sizes

HIDDEN = (Axis("hidden/fc1"), Axis("hidden/fc2"))
"""The two hidden layers of the classifier."""


@dataclass(frozen=True)
class _Convolution:
    """A convolution, with its place in the chain.

    Attributes:
        stage: Number of the stage, which a max pooling ends.
        place: Number of the convolution in its stage.
        name: Its name in the network.
        norm: The name of the batch norm after it, or None.
        channels: Its outputs.
    """

    stage: int
    place: int
    name: str
    norm: str | None
    channels: int

    @property
    def layer(self) -> str:
        """What the convolution is called in every VGG, whatever its number in ``features``."""
        return f"{self.stage}.{self.place}"


class VGGRecovery(MapRecovery):
    """The map after each convolution with its norm, activation and pooling.

    The first convolution reads the images and so loses nothing by selection; it makes the first stream. The hidden
    layers of the classifier keep their selected weights: one of them has 25,088 inputs.
    """

    def embed(self, model: TimmModel, images_BCSS: torch.Tensor) -> torch.Tensor:
        """Return (B, D, H, W), the map after the first convolution."""
        return _block(model, _convolutions(model)[0])(images_BCSS)

    def layer_name(self, model: TimmModel, block: str, linear: str) -> str:
        """Return the name of the block's convolution in ``features``."""
        del linear
        return next(each.name for each in _convolutions(model) if each.layer == block)

    def branches(self, block: TimmModel) -> tuple[Branch, ...]:
        """Return the block as one branch with its convolution."""
        return (Branch(forward=in_order(block, "act"), linears=(LinearMap(name="conv"),), has_shortcut=False),)


class VGGFamily(ConvolutionalFamily):
    """Widths: the channels of each convolution, and two hidden layers before the classifier.

    A convolution corresponds to that at the same place of the same stage: VGG-16 takes the first convolutions of each
    stage of VGG-19.
    """

    name: ClassVar[str] = "VGG"
    members: ClassVar[str] = "VGG (with and without batch norm)"
    recovery: ClassVar[RecoverySupport | None] = VGGRecovery()
    pairs: ClassVar[tuple[tuple[str, str], ...]] = (
        ("vgg19.tv_in1k", "vgg16"),
        ("vgg16.tv_in1k", "half"),
        ("vgg16_bn.tv_in1k", "half"),
    )

    def owns(self, model: nn.Module) -> bool:
        """Return whether ``model`` is timm's VGG."""
        return isinstance(model, VGG)

    def blocks(self, model: TimmModel) -> dict[str, nn.Module]:
        """Return the convolutions but the first, each with what follows it, by their place in the chain."""
        return {each.layer: _block(model, each) for each in _convolutions(model)[1:]}

    def specs(self, model: TimmModel) -> dict[str, TensorSpec]:
        """See ``SelectionFamily.specs``."""
        collector = SpecCollector(model, self.name)
        before: Axis | None = None
        for each in _convolutions(model):
            width, layer = Axis(f"conv/{each.layer}"), f"convolution {each.layer}"
            collector.convolution(each.name, width, before, layer=layer)
            if each.norm:
                collector.batch_norm(each.norm, width, layer=layer)
            before = width
        collector.convolution("pre_logits.fc1", HIDDEN[0], before)
        collector.convolution("pre_logits.fc2", HIDDEN[1], HIDDEN[0])
        collector.classifier("head.fc", HIDDEN[1], model.pre_logits.fc2.out_channels)
        return collector.finish()

    def teacher_names(self, teacher: TimmModel, student: TimmModel) -> dict[str, str]:
        """Map the convolutions and norms by their place in the stage, and the other tensors by name."""
        places = {each.layer: each for each in _convolutions(teacher)}
        layers: dict[str, str | None] = {}
        for each in _convolutions(student):
            other = places.get(each.layer)
            layers[each.name] = other.name if other else None
            if each.norm:
                layers[each.norm] = other.norm if other else None
        names: dict[str, str] = {}
        for name in student.state_dict():
            layer, _, kind = name.rpartition(".")
            other_layer = layers.get(layer, layer)
            if other_layer is not None:
                names[name] = f"{other_layer}.{kind}"
        return names

    def narrow_arguments(self, architecture: str, model: TimmModel, divisor: int) -> dict[str, Any]:
        """Return nothing: no argument of timm gives a VGG fewer channels."""
        del architecture, model, divisor
        return {}

    def narrow_sizes(self, model: TimmModel, divisor: int) -> dict[str, int] | None:
        """Divide the channels of every convolution and both hidden layers."""
        return divided_sizes(self.specs(model), model.state_dict(), divisor)

    def shape(self, model: TimmModel) -> NetworkShape:
        """See ``SelectionFamily.shape``."""
        convolutions = _convolutions(model)
        stages = sorted({each.stage for each in convolutions})
        channels = [[each.channels for each in convolutions if each.stage == stage] for stage in stages]
        return NetworkShape(depths=tuple(map(len, channels)), widths=tuple(widths[-1] for widths in channels))


def _block(model: TimmModel, convolution: _Convolution) -> nn.Sequential:
    """Return a convolution, its norm, its activation and the pooling after it, whichever there are."""
    start = int(convolution.name.rpartition(".")[2])
    parts: dict[str, nn.Module] = {"conv": model.features[start]}
    for layer in model.features[start + 1 :]:
        if isinstance(layer, nn.Conv2d):
            break
        is_norm, is_pool = isinstance(layer, nn.BatchNorm2d), isinstance(layer, nn.MaxPool2d)
        parts["norm" if is_norm else "pool" if is_pool else "act"] = layer
    return nn.Sequential(OrderedDict(parts))


def _convolutions(model: TimmModel) -> list[_Convolution]:
    """Return the convolutions in order."""
    layers, found = list(model.features), list[_Convolution]()
    stage = place = 0
    for number, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            norm = f"features.{number + 1}" if model.use_norm else None
            found.append(_Convolution(stage, place, f"features.{number}", norm, layer.out_channels))
            place += 1
        elif isinstance(layer, nn.MaxPool2d):
            stage, place = stage + 1, 0
    return found
