"""What the JSON of a saved model says of its shape: checked before timm hears of it, since anybody may have written it.

timm's ``create_model`` takes more than a shape: among its arguments are files to read (even pickles) and
repositories to fetch, and an architecture may name either. Of all that nothing passes here.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import timm
from timm.models import build_model_with_cfg

from twinbud.core.errors import TwinbudError

_LARGEST = 2**16
"""No width, image size or count of a known network comes near; a larger one only asks for memory."""
_DEEPEST = 1000
"""Blocks of a network, or of one of its stages."""


def read_architecture(content: Any, where: object) -> str:
    """The architecture's name in timm.

    Raises:
        TwinbudError: Another kind of value, or a name that timm does not have.
    """
    if not isinstance(content, str) or not timm.is_model(content):
        raise TwinbudError(
            "an architecture that timm has", got=_shown(content), where=str(where), fix="Copy the whole folder again"
        )
    return content


def read_model_args(content: Any, where: object) -> dict[str, Any]:
    """The arguments of ``timm.create_model`` that give the shape: plain values by name.

    Raises:
        TwinbudError: An argument that is about something else, or a value that is no shape.
    """
    if not isinstance(content, dict):
        raise _no_shape("arguments by name", content, where)
    for name, value in content.items():
        if name in _about_files() or not isinstance(name, str):
            raise _no_shape("arguments that give a shape", name, where)
        if not _is_plain(value, _DEEPEST if name in ("depth", "depths") else _LARGEST):
            raise _no_shape(f"a plain value of '{name}', of a size that a network can have", value, where)
    return content


def read_normalization(content: Any, where: object) -> tuple[float, ...]:
    """Means or deviations, one number a colour channel.

    Raises:
        TwinbudError: Not three finite numbers.
    """
    numbers = content if isinstance(content, list | tuple) else ()
    if len(numbers) != 3 or not all(_is_number(value, 1e6) for value in numbers):
        raise _no_shape("three numbers, one a colour channel", content, where)
    return tuple(numbers)


def _about_files() -> set[str]:
    """What timm takes besides a network's shape: all that its two builders name, and what those pass on."""
    named = {*inspect.signature(timm.create_model).parameters, *inspect.signature(build_model_with_cfg).parameters}
    return (named | {"pruned", "features_only", "feature_cls", "out_indices", "device", "dtype"}) - {"kwargs"}


def _is_plain(value: Any, largest: float) -> bool:
    if isinstance(value, list):
        return len(value) <= _DEEPEST and all(not isinstance(part, list) and _is_plain(part, largest) for part in value)
    return value is None or isinstance(value, bool | str) or _is_number(value, largest)


def _is_number(value: Any, largest: float) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) <= largest


def _no_shape(expected: str, content: Any, where: object) -> TwinbudError:
    return TwinbudError(expected, got=_shown(content), where=str(where), fix="Correct it, or copy the folder again")


def _shown(content: Any) -> str:
    return f"'{str(content)[:60]}'" if isinstance(content, str | int | float) else f"a {type(content).__name__}"
