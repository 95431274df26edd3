"""Check the JSON of a model folder, which anybody may have written, before timm gets it.

timm's ``create_model`` accepts more than a network's shape: among its arguments are files to read (even pickles) and
repositories to fetch, and an architecture's name may point to either. Nothing of that passes here.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import timm
from timm.models import build_model_with_cfg

from twinbud.core.errors import TwinbudError

_LARGEST = 2**16
"""Largest accepted width, image size or count, far above any known network; more would only exhaust memory."""
_DEEPEST = 1000
"""Largest accepted number of blocks of a network or stage, and length of a list."""


def read_architecture(content: Any, where: object) -> str:
    """Return a timm architecture's name.

    Raises:
        TwinbudError: The value is not a string, or not a name that timm has.
    """
    if not isinstance(content, str) or not timm.is_model(content):
        raise TwinbudError(
            f"timm has no architecture {_shown(content)}",
            where=str(where),
            fix="Copy the whole folder again, or update timm",
        )
    return content


NARROWED = "-narrowed-by-twinbud"
"""Ends the architecture's name in ``config.json`` of a network that timm's arguments cannot build. timm knows no such
network and fails, where it would else build a wider one with random weights."""


def read_architecture_of(config: Any) -> tuple[Any, bool]:
    """Return the architecture in ``config.json``, and whether the network is narrower than timm builds it.

    Raises:
        KeyError, TypeError: ``config`` is no mapping that names one.
    """
    name = config["architecture"]
    if isinstance(name, str) and name.endswith(NARROWED):
        return name.removesuffix(NARROWED), True
    return name, False


def read_narrowed_shapes(content: Any, where: object) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes of a network's tensors by name, or None for None.

    Raises:
        TwinbudError: They are not lists of at most eight sizes.
    """
    if content is None:
        return None
    if not isinstance(content, dict) or not all(
        isinstance(name, str)
        and isinstance(shape, list)
        and len(shape) <= 8
        and all(type(size) is int and 0 < size <= _LARGEST for size in shape)
        for name, shape in content.items()
    ):
        raise _wrong(f"shapes is {_shown(content)} without the shapes of tensors", where)
    return {name: tuple(shape) for name, shape in content.items()}


def read_model_args(content: Any, where: object) -> dict[str, Any]:
    """Return those arguments of ``timm.create_model`` that give a network's shape.

    Arguments that are null, as timm ignores them, and refused ones that are off (``features_only=False``, which timm
    itself saves) are dropped.

    Raises:
        TwinbudError: An argument is not about the shape, or its value is not one that a network can have.
    """
    if not isinstance(content, dict):
        raise _wrong(f"model_args is {_shown(content)}, not a mapping", where)
    arguments = {name: value for name, value in content.items() if value is not None}
    for name, value in tuple(arguments.items()):
        if not isinstance(name, str) or name in _about_files():
            if value is not False:
                raise _wrong(f"model_args contains {_shown(name)}, which does not describe a network's shape", where)
            del arguments[name]
        elif not _is_plain(value, _DEEPEST if name in ("depth", "depths") else _LARGEST):
            raise _wrong(f"'{name}' in model_args is {_shown(value)}, which no network has", where)
    return arguments


def read_normalization(content: Any, where: object) -> tuple[float, ...]:
    """Return means or standard deviations, one per color channel.

    Raises:
        TwinbudError: They are not three finite numbers.
    """
    numbers = content if isinstance(content, list | tuple) else ()
    if len(numbers) != 3 or not all(_is_number(value, 1e6) for value in numbers):
        raise _wrong(f"mean or std is {_shown(content)}, not three finite numbers", where)
    return tuple(numbers)


def _about_files() -> set[str]:
    """Return timm's arguments that are not about the shape: those its two builders name, and those they pass on."""
    named = {*inspect.signature(timm.create_model).parameters, *inspect.signature(build_model_with_cfg).parameters}
    return (named | {"pruned", "features_only", "feature_cls", "out_indices", "device", "dtype"}) - {"kwargs"}


def _is_plain(value: Any, largest: float) -> bool:
    if isinstance(value, list):
        return len(value) <= _DEEPEST and all(not isinstance(part, list) and _is_plain(part, largest) for part in value)
    return value is None or isinstance(value, bool | str) or _is_number(value, largest)


def _is_number(value: Any, largest: float) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) <= largest


def _wrong(problem: str, where: object) -> TwinbudError:
    return TwinbudError(problem, where=str(where), fix="Correct it, or copy the folder again")


def _shown(content: Any) -> str:
    return f"'{str(content)[:60]}'" if isinstance(content, str | int | float) else f"a {type(content).__name__}"
