"""Conversion of dataclasses to plain JSON values and back, checked against their type hints."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Content = TypeVar("Content")

_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "text"}


def to_json(value: Any) -> Any:
    """Convert a dataclass to values that ``json`` can write.

    Dataclasses become objects, tuples become arrays and bytes become Base64 text. A field that is None and whose
    default is None is left out.
    """
    if is_dataclass(value) and not isinstance(value, type):
        present = (field for field in fields(value) if not _is_absent(field, value))
        return {field.name: to_json(getattr(value, field.name)) for field in present}
    if isinstance(value, Mapping):
        return {str(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(inner) for inner in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value


def from_json(kind: type[Content], content: Any, where: str = "content") -> Content:
    """Convert what ``to_json`` made back to a dataclass; unknown keys are ignored.

    Args:
        kind: A dataclass whose fields are dataclasses, plain values, bytes, tuples, mappings with text keys, literals,
            or unions of these with None.
        content: Plain JSON values.
        where: Name of ``content`` in the text of errors.

    Raises:
        ValueError: A missing key, or a value of another type; the text names the key.
    """
    return _read(kind, content, where)


def _is_absent(field: Field[Any], value: Any) -> bool:
    return field.default is None and getattr(value, field.name) is None


def _read(kind: Any, content: Any, where: str) -> Any:
    if kind is Any:
        return content
    if is_dataclass(kind):
        return _read_dataclass(kind, content, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _read_union(arguments, content, where)
    if origin is Literal:
        _require(content in arguments, content, where, f"one of {arguments}")
        return content
    if origin is tuple:
        return _read_tuple(arguments, content, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _require(isinstance(content, dict), content, where, "an object")
        return {key: _read(arguments[1], inner, f"{where}.{key}") for key, inner in content.items()}
    if kind is bytes:
        return _read_bytes(content, where)
    accepted = (int, float) if kind is float else kind
    is_number_given_as_bool = isinstance(content, bool) and kind is not bool
    _require(isinstance(content, accepted) and not is_number_given_as_bool, content, where, _NAMES[kind])
    return float(content) if kind is float else content


def _read_bytes(content: Any, where: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {str(content)[:40]!r} is not Base64 text") from error


def _read_dataclass(kind: Any, content: Any, where: str) -> Any:
    _require(isinstance(content, dict), content, where, "an object")
    hints, values = _hints(kind), {}
    for field in fields(kind):
        if field.name in content:
            values[field.name] = _read(hints[field.name], content[field.name], f"{where}.{field.name}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{where}: {str(error).partition('() ')[2]}") from error


def _read_union(arguments: tuple[Any, ...], content: Any, where: str) -> Any:
    if content is None and NoneType in arguments:
        return None
    (kind,) = (argument for argument in arguments if argument is not NoneType)
    return _read(kind, content, where)


def _read_tuple(arguments: tuple[Any, ...], content: Any, where: str) -> tuple[Any, ...]:
    _require(isinstance(content, list), content, where, "an array")
    kinds: Sequence[Any] = arguments
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        kinds = [arguments[0]] * len(content)
    _require(len(content) == len(kinds), content, where, f"an array of {len(kinds)} values")
    return tuple(
        _read(kind, inner, f"{where}[{place}]") for place, (kind, inner) in enumerate(zip(kinds, content, strict=True))
    )


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _require(is_right: bool, content: Any, where: str, right: str) -> None:
    if not is_right:
        raise ValueError(f"{where}: {str(content)[:40]!r} is not {right}")
