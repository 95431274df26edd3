"""The final features of a timm network: a map of the image, and one vector for it.

Shape legend: B batch, C channels, S image side, H and W sides of the map, L positions, D channels of the map,
P channels of the vector.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import TimmModel

_ADVICE = "Choose a network with a map of the image, such as convnext_tiny or vit_tiny_patch16_224"


class Features(NamedTuple):
    """Features of a batch of images.

    Attributes:
        spatial_BDHW: The final map, after the final norm where the network normalizes before it pools.
        pooled_BP: What a classifier reads: the class token or the pooled map.
    """

    spatial_BDHW: torch.Tensor
    pooled_BP: torch.Tensor


class FeatureShape(NamedTuple):
    """Shape of the features of one image."""

    num_channels: int
    height: int
    width: int
    num_pooled: int


def extract_features(network: TimmModel, images_BCSS: torch.Tensor) -> Features:
    """Compute the features of normalized float32 images.

    Raises:
        ValueError: The network gives no map.
    """
    raw = network.forward_features(images_BCSS)
    spatial_BDHW = _as_map(network, raw)
    pooled = network.forward_head(raw, pre_logits=True)
    if pooled.dim() == 4:  # saved as a feature extractor that pools nothing
        pooled = spatial_BDHW.mean(dim=(2, 3))
    elif pooled.dim() == 3:
        pooled = pooled[:, 0] if getattr(network, "num_prefix_tokens", 0) else pooled.mean(dim=1)
    return Features(spatial_BDHW, pooled)


def _as_map(network: TimmModel, raw: Any) -> torch.Tensor:
    """Return tokens (B, L, D), or a map with its channels first or last, as (B, D, H, W).

    Raises:
        ValueError: They are neither, or not the tokens of a square.
    """
    if isinstance(raw, torch.Tensor) and raw.dim() == 4:
        return raw.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "NCHW") == "NHWC" else raw
    if not isinstance(raw, torch.Tensor) or raw.dim() != 3:
        raise ValueError(f"forward_features gives {_described(raw)}")
    tokens_BLD = raw[:, getattr(network, "num_prefix_tokens", 0) :]
    side = math.isqrt(tokens_BLD.shape[1])
    if side**2 != tokens_BLD.shape[1]:
        raise ValueError(f"its {tokens_BLD.shape[1]} tokens form no square")
    return tokens_BLD.transpose(1, 2).unflatten(2, (side, side))


def _described(raw: Any) -> str:
    return f"{raw.dim()} dimensions" if isinstance(raw, torch.Tensor) else f"a {type(raw).__name__}"


def require_feature_shape(network: TimmModel, architecture: str, image_size: int, option: str) -> FeatureShape:
    """Return the shape of the features of a network, without weights and without computation.

    Args:
        network: The network for this image size, on the meta device.
        architecture: timm's name, for the error.
        image_size: S, in pixels.
        option: The option that chose the network, for the error.

    Raises:
        TwinbudError: It has no spatial features, or a single position at this image size.
    """
    try:
        with torch.no_grad():
            found = extract_features(network.eval(), torch.empty(2, 3, image_size, image_size, device="meta"))
    except Exception as error:  # each architecture fails with another type
        problem = f"{architecture} has no spatial features for images of {image_size} pixels ({error})"
        raise TwinbudError(problem, where=option, fix=_ADVICE) from error
    _, num_channels, height, width = found.spatial_BDHW.shape
    if height * width < 2:
        problem = f"{architecture} has a single position, and no map, for an image of {image_size} pixels"
        raise TwinbudError(problem, where=option, fix="Use a larger --image-size, or another network")
    return FeatureShape(num_channels, height, width, num_pooled=found.pooled_BP.shape[1])
