"""Any other network of timm: it can be trained whole, but no weights can be selected from it."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import NetworkShape, TimmModel
from twinbud.models.families.convolutional import ConvolutionalFamily
from twinbud.models.widths import TensorSpec


class PlainFamily(ConvolutionalFamily):
    """No widths and no blocks; layers for learning-rate decay are timm's own.

    Args:
        selectable: Names of the families whose weights can be selected, for errors.
    """

    name: ClassVar[str] = "network without selection"
    members: ClassVar[str] = "any other timm network"
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

    def specs(self, model: TimmModel) -> dict[str, TensorSpec]:
        """Refuse: the widths that the tensors share are unknown.

        Raises:
            TwinbudError: Always.
        """
        raise self._no_selection(model)

    def narrow_arguments(self, architecture: str, model: TimmModel, divisor: int) -> dict[str, Any]:
        """Refuse: see ``specs``."""
        del architecture, divisor
        raise self._no_selection(model)

    def shape(self, model: TimmModel) -> NetworkShape:
        """Refuse: see ``specs``."""
        raise self._no_selection(model)

    def _no_selection(self, model: TimmModel) -> TwinbudError:
        return TwinbudError(
            f"its widths are not described (described: {self.selectable})",
            where=f"selection from a {type(model).__name__}",
            fix="Use --family auto, which finds its widths, or train it whole with --method finetune",
        )
