"""Of each family of networks, the layer whose output is weighed to a map of the image.

Where a block exchanges information between all places, as attention and token mixing do, the map is taken before the
last such exchange: after the first norm of the last block. Behind it, the evidence of a place may be anywhere, or in a
class token. Where a network averages its last map, which convolutions made, that map is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva, EvaBlock
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vgg import VGG
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import TimmModel
from twinbud.models.families.efficientnet import EfficientNetFamily

Layout = Literal["channels-first", "channels-last", "tokens"]


@dataclass(frozen=True, kw_only=True)
class MapLayer:
    """A layer whose output has a place for each part of the image.

    Attributes:
        name: Its full name in the network.
        layout: Order of its output: (B, D, h, w), (B, h, w, D) or tokens (B, L, D).
        num_prefix_tokens: Tokens before those of the image, such as a class token.
    """

    name: str
    layout: Layout = "channels-first"
    num_prefix_tokens: int = 0

    def to_map(self, output: torch.Tensor) -> torch.Tensor:
        """Rearrange the layer's output, or its gradient, as (B, D, h, w).

        Raises:
            TwinbudError: The output is no map, or its patches form no square.
        """
        if self.layout == "channels-last":
            output = output.permute(0, 3, 1, 2)
        elif self.layout == "tokens":
            tokens_BLD = output[:, self.num_prefix_tokens :]
            side = math.isqrt(tokens_BLD.shape[1])
            if side**2 != tokens_BLD.shape[1]:
                raise no_map(f"'{self.name}' has {tokens_BLD.shape[1]} patches, which form no square")
            output = tokens_BLD.transpose(1, 2).unflatten(2, (side, side))
        if output.dim() != 4 or output.shape[2] * output.shape[3] < 2:
            raise no_map(f"'{self.name}' gives {tuple(output.shape)} for an image, which has no two places")
        return output


def map_layer(model: TimmModel, image_size: int) -> MapLayer:
    """Choose the layer for the map of ``model``, by its family.

    Args:
        model: A network of timm.
        image_size: Side of its images in pixels, for a network of no known family, which is tried out.

    Raises:
        TwinbudError: A network of no known family has no layer with a map.
    """
    if isinstance(model, VisionTransformer | Eva):
        return _transformer_layer(model)
    if isinstance(model, SwinTransformer):
        return _swin_layer(model)
    if isinstance(model, MlpMixer):
        norm = "norm1" if hasattr(model.blocks[-1], "norm1") else "norm"  # a block of gMLP has one
        return MapLayer(name=f"blocks.{len(model.blocks) - 1}.{norm}", layout="tokens")
    if isinstance(model, ConvNeXt):
        return MapLayer(name="norm_pre")
    if isinstance(model, ResNet):
        return MapLayer(name="layer4")
    if isinstance(model, VGG):
        pools = [number for number, layer in enumerate(model.features) if isinstance(layer, nn.MaxPool2d)]
        return MapLayer(name=f"features.{pools[-1] - 1}")  # twice as fine as after the pooling
    if EfficientNetFamily().owns(model):
        return MapLayer(name="bn2" if hasattr(model, "bn2") else "blocks")
    return _last_map(model, image_size)


def _transformer_layer(model: TimmModel) -> MapLayer:
    """Return the first norm of the last block, or the block before it where that norm comes after attention."""
    last = len(model.blocks) - 1
    is_before = isinstance(model.blocks[last], Block | EvaBlock)
    name = f"blocks.{last}.norm1" if is_before else f"blocks.{max(0, last - 1)}"
    return MapLayer(name=name, layout="tokens", num_prefix_tokens=model.num_prefix_tokens)


def _swin_layer(model: TimmModel) -> MapLayer:
    """Return the first norm of the last block of the last stage."""
    stage = len(model.layers) - 1
    return MapLayer(name=f"layers.{stage}.blocks.{len(model.layers[stage].blocks) - 1}.norm1", layout="channels-last")


def _last_map(model: TimmModel, image_size: int) -> MapLayer:
    """Return the last layer that gives (B, D, h, w) with more than one place for a blank image."""
    found: list[str] = []

    def note(name: str, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.dim() == 4 and output.shape[2] * output.shape[3] > 1:
            found.append(name)

    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: note(name, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.inference_mode():
            model(torch.zeros(1, 3, image_size, image_size))
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise no_map("no layer of it gives a map (B, D, h, w)")
    return MapLayer(name=found[-1])


def no_map(reason: str) -> TwinbudError:
    """Return the error for a network, or an image size, that leaves nothing to draw a map from."""
    fix = "Train with a larger --image-size, or a network of a family that 'twinbud families' lists"
    return TwinbudError(f"the network has no map: {reason}", where="twinbud explain", fix=fix)
