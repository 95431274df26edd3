"""The families whose weights can be selected, and the family of a network; ``families.base`` shows how to add one."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import SelectionFamily
from twinbud.models.families.convnext import ConvNeXtFamily
from twinbud.models.families.efficientnet import EfficientNetFamily
from twinbud.models.families.eva import EvaFamily
from twinbud.models.families.mixer import MixerFamily
from twinbud.models.families.plain import PlainFamily
from twinbud.models.families.resnet import ResNetFamily
from twinbud.models.families.swin import SwinFamily
from twinbud.models.families.vgg import VGGFamily
from twinbud.models.families.vit import ViTFamily

FAMILIES: tuple[SelectionFamily, ...] = (
    ViTFamily(),
    EvaFamily(),
    ConvNeXtFamily(),
    SwinFamily(),
    MixerFamily(),
    VGGFamily(),
    ResNetFamily(),
    EfficientNetFamily(),
)
"""The families whose weights can be selected."""


def _listed(families: Iterable[SelectionFamily], word: str) -> str:
    """Return the families' names, the last two of them joined by ``word``."""
    *names, last = (family.name for family in families)
    return f"{', '.join(names)} {word} {last}" if names else last


_PLAIN = PlainFamily(_listed(FAMILIES, "and"))


def without_recovery(family: SelectionFamily) -> TwinbudError:
    """Return the error for recovery with a family that has no ``RecoverySupport``."""
    supported = _listed((other for other in FAMILIES if other.recovery), "or")
    if family not in FAMILIES:
        problem = "recovery is not possible with --family auto"
        fix = f"Use --recover none, or --family described with a {supported} teacher"
        return TwinbudError(problem, where="--recover", fix=fix)
    return TwinbudError(
        f"recovery is not implemented for {family.name}",
        where="--recover",
        fix=f"Use --recover none, or choose a {supported} teacher",
    )


def family_of(model: nn.Module) -> SelectionFamily:
    """Return the family of ``model``, a timm network; without a family of its own, it can only be trained whole."""
    return next((family for family in FAMILIES if family.owns(model)), _PLAIN)
