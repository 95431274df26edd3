"""What happens to an image between decoding and the network, as one object.

Training, prediction, the model folder and timm's ``pretrained_cfg`` share one ``Preprocessing``, so that no other
place can disagree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from twinbud.config.schema import MAX_IMAGE_SIZE
from twinbud.data.augment import Normalization

RESIZE_RULE: Literal["squash-bicubic-antialias"] = "squash-bicubic-antialias"
GRAY_RULE: Literal["repeat"] = "repeat"
_TIMM = {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bicubic"}
"""How timm's ``pretrained_cfg`` spells the resize rule."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From a decoded image to the network's input.

    The image is resized (``resize``), gray is repeated to three channels, and pixels become
    ``(pixels / 255 - mean) / std`` (``normalization``).

    Attributes:
        image_size: Side of the network's input in pixels, 1 to ``MAX_IMAGE_SIZE``.
        mean: Mean of each color channel, for pixels in [0, 1].
        std: Standard deviation of each color channel, for pixels in [0, 1]; above 0.
        resize_rule: Resize to a square without keeping proportions, bicubic with antialiasing.
        gray_rule: Repeat gray images to three channels.

    Raises:
        ValueError: A value is outside its range.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize_rule: Literal["squash-bicubic-antialias"] = RESIZE_RULE
    gray_rule: Literal["repeat"] = GRAY_RULE

    def __post_init__(self) -> None:
        if type(self.image_size) is not int or not 1 <= self.image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size is {self.image_size!r}, outside 1 to {MAX_IMAGE_SIZE}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(_is_finite(value) for value in values):
                raise ValueError(f"{name} is {list(values)}, not three finite numbers")
        if min(self.std) <= 0:
            raise ValueError(f"std is {list(self.std)}, not above 0")
        for name, only in (("resize_rule", RESIZE_RULE), ("gray_rule", GRAY_RULE)):
            if getattr(self, name) != only:
                raise ValueError(f"{name} is {getattr(self, name)!r}, not {only!r}")

    def normalization(self, device: torch.device) -> Normalization:
        """Return the normalization, with its constants on ``device``."""
        return Normalization.on(device, self.mean, self.std)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; ``from_json`` is the inverse."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Preprocessing:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: A value is outside its range.
            KeyError, TypeError: A value is missing, unknown or of another type.
        """
        return cls(**{**content, "mean": tuple(content["mean"]), "std": tuple(content["std"])})

    def to_timm(self) -> dict[str, Any]:
        """Return the fields of timm's ``pretrained_cfg`` with which timm's own transform gives the same pixels."""
        return {
            "input_size": [3, self.image_size, self.image_size],
            **_TIMM,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_timm(cls, config: Mapping[str, Any]) -> Preprocessing:
        """Read timm's ``pretrained_cfg``.

        Raises:
            ValueError: The configuration describes another resize rule or input that is not square RGB.
            KeyError, TypeError: A field is missing or of another type.
        """
        channels, height, width = config["input_size"]
        if channels != 3 or height != width:
            raise ValueError(f"input_size is {config['input_size']}, not [3, S, S]")
        for name, value in _TIMM.items():
            if config[name] != value:
                raise ValueError(f"{name} is {config[name]!r}, not {value!r}")
        return cls(image_size=width, mean=tuple(config["mean"]), std=tuple(config["std"]))


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resize to a square by ``RESIZE_RULE``, as timm does with ``crop_mode="squash"``.

    Args:
        image: (H, W, 3) uint8.
        size: S, in pixels.

    Returns:
        (S, S, 3) uint8, bit-identical to torchvision's ``Resize((S, S), BICUBIC)`` on the same PIL image.
    """
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
