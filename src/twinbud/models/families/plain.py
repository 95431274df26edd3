"""Any other network of timm: it can be trained whole, but no weights can be selected from it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import NetworkShape, SelectionFamily, TimmModel
from twinbud.models.families.convolutional import is_depthwise, require_image_size, timm_layer_numbers
from twinbud.models.widths import TensorSpec


class PlainFamily(SelectionFamily):
    """No widths and no blocks; layers for learning-rate decay are timm's own.

    Args:
        selectable: Names of the families whose weights can be selected, for errors.
    """

    name: ClassVar[str] = "network without selection"
    members: ClassVar[str] = "any other timm network"
    temperature: ClassVar[float] = 3.0
    drop_path: ClassVar[float] = 0.0
    memory_format: ClassVar[torch.memory_format] = torch.channels_last
    selectable: str = "families that are described"

    def __init__(self, selectable: str) -> None:
        self.selectable = selectable

    def owns(self, model: nn.Module) -> bool:
        """Return whether timm built ``model``."""
        return hasattr(model, "pretrained_cfg")

    def blocks(self, model: TimmModel) -> dict[str, nn.Module]:
        """Return nothing."""
        del model
        return {}

    def gains_from_bf16(self, model: TimmModel, device: torch.device) -> bool:
        """Return false for depthwise convolutions on a CPU: they take 1.5 times as long in bf16 (EXPERIMENTS.md)."""
        return device.type != "cpu" or not is_depthwise(model)

    def layer_numbers(self, model: TimmModel) -> dict[str, int]:
        """Return timm's own layers; nothing if timm has none for this network."""
        return timm_layer_numbers(model)

    def specs(self, model: TimmModel) -> dict[str, TensorSpec]:
        """Refuse: the widths that the tensors share are unknown.

        Raises:
            TwinbudError: Always.
        """
        raise self._no_selection(model)

    def half(self, architecture: str, model: TimmModel) -> dict[str, Any]:
        """Refuse: see ``specs``."""
        del architecture
        raise self._no_selection(model)

    def shape(self, model: TimmModel) -> NetworkShape:
        """Refuse: see ``specs``."""
        raise self._no_selection(model)

    def image_arguments(self, model: TimmModel, image_size: int, where: str) -> dict[str, Any]:
        """Accept any size that a forward pass of the shapes accepts; no timm argument depends on it.

        Raises:
            TwinbudError: The network cannot process images of that size.
        """
        require_image_size(model, image_size, where)
        return {}

    def _no_selection(self, model: TimmModel) -> TwinbudError:
        return TwinbudError(
            f"weights of a {type(model).__name__} cannot be selected, only those of {self.selectable}",
            where="--teacher",
            fix="Use --family auto, which finds its widths, or train it whole with --method finetune",
        )
