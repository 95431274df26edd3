"""The model families whose weights can be selected. ``families.base`` shows how to add one."""

from __future__ import annotations

from torch import nn

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import SelectionFamily
from twinbud.models.families.convnext import ConvNeXtFamily
from twinbud.models.families.vit import ViTFamily

FAMILIES: tuple[SelectionFamily, ...] = (ViTFamily(), ConvNeXtFamily())


def family_of(model: nn.Module, name: str) -> SelectionFamily:
    """Return the family of ``model``.

    Args:
        model: A timm network.
        name: How the user spelled it, for the error.

    Raises:
        TwinbudError: No known family owns the model.
    """
    for family in FAMILIES:
        if family.owns(model):
            return family
    known = " and ".join(family.members for family in FAMILIES)
    raise TwinbudError(
        f"'{name}' is a timm {type(model).__name__}; supported: {known}",
        fix="Choose another teacher or student",
    )
