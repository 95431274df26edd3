"""The model families that weights can be selected in; a new one is one file here and one line in ``FAMILIES``."""

from __future__ import annotations

from torch import nn

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import Family
from twinbud.models.families.convnext import ConvNeXtFamily
from twinbud.models.families.vit import ViTFamily

FAMILIES: tuple[Family, ...] = (ViTFamily(), ConvNeXtFamily())


def family_of(model: nn.Module, name: str) -> Family:
    """The family ``model`` belongs to.

    Raises:
        TwinbudError: It belongs to none of them.
    """
    for family in FAMILIES:
        if family.owns(model):
            return family
    raise TwinbudError(
        f"a model of a known family ({', '.join(family.name for family in FAMILIES)})",
        got=f"{type(model).__name__}",
        where=name,
        fix="Choose another teacher or student",
    )
