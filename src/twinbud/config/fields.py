"""Typed fields with a range and a sentence of help, whose violations are reported in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from numbers import Integral
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Self, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, ValidatorFunctionWrapHandler, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs, ErrorDetails

from twinbud.core.errors import TwinbudError, unknown_choice
from twinbud.core.files import require_unicode

_MAX_SHOWN = 80
"""Characters of an invalid value in its error."""
_NOUNS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
    NoneType: "none",
}
"""What a value of a type is called in errors."""
_ON_OFF = {"on": "on", "true": "on", "yes": "on", "off": "off", "false": "off", "no": "off"}

_FINITE = ConfigDict(allow_inf_nan=False)


def setting(default: Any, text: str, **limits: Any) -> Any:
    """Declare a field with its default, the sentence that the command line shows, and its range."""
    return Field(default=default, description=text, **limits)


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """Return the types of a stage's fields, by name."""
    return get_type_hints(kind)


@dataclass(frozen=True, kw_only=True, config=_FINITE | ConfigDict(extra="forbid"))
class Checked:
    """Reports the first invalid field as one line."""

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: ArgsKwargs | Self, handler: ValidatorFunctionWrapHandler) -> Self:
        if not isinstance(values, ArgsKwargs):  # a stage of a run, checked when it was made
            return handler(values)
        hints = hints_of(cls)
        given = {name: _plain(name, value, hints.get(name)) for name, value in (values.kwargs or {}).items()}
        try:
            return handler(ArgsKwargs(values.args, given))
        except ValidationError as error:
            first = error.errors(include_url=False)
            name = str(first[0]["loc"][0])
            if name not in hints:
                raise unknown_setting(name, hints) from None
            field = cls.__pydantic_fields__[name]  # type: ignore[attr-defined]
            hint = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            raise _invalid(name, hint, [e for e in first if e["loc"][0] == name]) from None


def read_value(name: str, value: Any, hint: Any) -> Any:
    """Convert ``value``, which may be text, to the type ``hint``.

    Raises:
        TwinbudError: It is not a valid value of that type, or an infinite number or NaN; the text names ``name`` as an
            option.
    """
    try:
        return TypeAdapter(hint, config=_FINITE).validate_python(_plain(name, value, hint))
    except ValidationError as error:
        raise _invalid(name, hint, error.errors(include_url=False)) from None


def read_paths(name: str, paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return one path or several as a list.

    Raises:
        TwinbudError: There is none, or one is empty; the text names ``name``.
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    if not listed:
        raise TwinbudError("no path is given", where=name, fix="Give at least one")
    if "" in listed:  # which would be the current folder
        raise TwinbudError("the value is empty", where=name, fix=f"Give {name} a value")
    return [Path(path) for path in listed]


def _plain(name: str, value: Any, hint: Any) -> Any:
    """Unify the spellings of one value in YAML, options and Python: none and null, on and true, text of digits.

    Raises:
        TwinbudError: The value is a file name that is not UTF-8, which no table or page could hold.
    """
    if isinstance(value, str | Path):
        try:
            require_unicode([str(value)])
        except TwinbudError as error:
            raise error.at(option_of(name)) from None
    kinds = get_args(hint) or (hint,)
    if isinstance(value, str) and value in ("none", "null") and NoneType in kinds:
        return None
    if value is None and "none" in kinds:
        return "none"
    if "on" in kinds and str(value).lower() in _ON_OFF:
        return _ON_OFF[str(value).lower()]
    is_text = str in kinds or Path in kinds
    if value == "" and Path in kinds:  # which would be the current folder
        raise _empty(name)
    if isinstance(value, bool) and bool not in kinds and not is_text:
        return str(value).lower()  # true is not the number 1
    if isinstance(value, Integral) and not isinstance(value, bool) and is_text:  # also one of NumPy
        return str(value)
    return value


def _empty(name: str) -> TwinbudError:
    option = option_of(name)
    return TwinbudError("the value is empty", where=option, fix=f"Give {option} a value")


def _invalid(name: str, hint: Any, errors: list[ErrorDetails]) -> TwinbudError:
    """Describe in one line what pydantic found wrong with one value."""
    value, option = errors[0]["input"], option_of(name)
    shown = str(value) if len(str(value)) <= _MAX_SHOWN else f"{str(value)[:_MAX_SHOWN]}…"
    if get_origin(hint) is Literal:
        return unknown_choice(option, shown, get_args(hint))
    if not shown:
        return _empty(name)
    if any(error["type"] == "int_parsing_size" for error in errors):
        return TwinbudError(f"'{shown}' has too many digits", where=option)
    fix = "Write it in quotes" if isinstance(value, float) and str in (hint, *get_args(hint)) else None
    return TwinbudError(f"'{shown}' is not {', or '.join(_valid(hint))}", where=option, fix=fix)


def _valid(hint: Any, limits: Iterable[Any] = ()) -> list[str]:
    """Return what a value of a type may be, in words; ``limits`` are those of its numbers."""
    kinds = get_args(hint)
    if get_origin(hint) is Annotated:
        return _valid(kinds[0], (*limits, *hint.__metadata__))
    if get_origin(hint) is Literal:
        return list(kinds)
    if kinds:
        return [words for kind in kinds for words in _valid(kind, limits)]
    noun = _NOUNS.get(hint, f"a {hint.__name__}")
    return [f"{noun}{_range(limits)}" if hint in (int, float) else noun]


def _range(limits: Iterable[Any]) -> str:
    """Return a range in words, as `` from 0 to 1``; nothing where there is no limit."""
    flat = [limit for part in limits for limit in getattr(part, "metadata", [part])]
    found = {name: getattr(limit, name) for limit in flat for name in ("ge", "gt", "le", "lt") if hasattr(limit, name)}
    if "ge" in found and "le" in found:
        return f" from {found['ge']} to {found['le']}"
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    named = [f"{text} {found[name]}" for name, text in words.items() if name in found]
    return f" {' and '.join(named)}" if named else ""


def unknown_setting(name: str, known: Iterable[str], where: str | None = None, command: str = "train") -> TwinbudError:
    """Return the error for a setting that does not exist; it names the nearest one instead of all."""
    near = difflib.get_close_matches(name, list(known), n=1)
    fix = f"Did you mean '{near[0]}'? All settings" if near else "All settings"
    return TwinbudError(f"there is no setting '{name}'", where=where, fix=f"{fix}: twinbud {command} --help")


def option_of(name: str) -> str:
    """Return the command-line option of a setting."""
    return f"--{name.replace('_', '-')}"
