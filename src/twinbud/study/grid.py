"""From a recipe to the runs it asks for: every combination of its axes, or those that ``--only`` leaves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from twinbud.config.loading import read_setting, run_config
from twinbud.config.schema import PROFILES, Profile, RunConfig
from twinbud.core.errors import TwinbudError, unknown_choice
from twinbud.study.recipe import AXES, Recipe

_OUTERMOST = ("data", "pair", "fraction", "sampling", "method")
"""The order of the runs: a sampling is finished for all methods before the next begins, so that pairs fill up first."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A run as the recipe asks for it, before it is known where the images lie.

    Attributes:
        coordinates: Its place on every axis; in a sweep also ``sweep``, the setting's name, and ``value``.
        settings: What ``run_config`` takes; ``data`` is still the name of the set.
        default: The settings without the sweep's; None where there is no sweep.
    """

    coordinates: Mapping[str, Any]
    settings: Mapping[str, Any]
    default: Mapping[str, Any] | None = None

    @property
    def data(self) -> str:
        """The name of the set of images."""
        return str(self.coordinates["data"])


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run that a worker can carry out.

    Attributes:
        run_id: See ``twinbud.study.run_id``.
        facts: What the identity is the checksum of.
        coordinates: Its place in the recipe.
        settings: What ``run_config`` takes.
        num_steps: Optimiser steps it will take.
        num_test: Images it will be measured on.
        is_default: Whether it is the run of a sweep whose value is the default.
    """

    run_id: str
    facts: Mapping[str, Any]
    coordinates: Mapping[str, Any]
    settings: Mapping[str, Any]
    num_steps: int
    num_test: int
    is_default: bool = False

    @property
    def label(self) -> str:
        """``brain-mri · dinov2 · 5 % · dual · sampling 2``."""
        return describe_coordinates(self.coordinates)


def describe_coordinates(coordinates: Mapping[str, Any]) -> str:
    """Where a run stands in its recipe, in one line."""
    words = []
    for axis, value in coordinates.items():
        if axis == "fraction":
            words.append(f"{100 * value:g} %")
        elif axis == "sweep":
            words.append(f"{value} {coordinates['value']}")
        elif axis in ("data", "pair", "method"):
            words.append(str(value))
        elif axis != "value":
            words.append(f"{axis} {value}")
    return " · ".join(words)


def read_choices(words: Sequence[str], recipe: Recipe) -> dict[str, tuple[Any, ...]]:
    """What ``--only KEY=VALUE,...`` asks for, a key given twice taken together.

    Pairs and methods may be any that the recipe defines, and fractions, samplings and sets any at all, also such as
    its grid leaves out.

    Raises:
        TwinbudError: No KEY=VALUE, an unknown key, or a pair or method that the recipe does not define.
    """
    choices: dict[str, list[Any]] = {}
    for word in words:
        key, equals, values = word.partition("=")
        if not equals or not values:
            raise TwinbudError("KEY=VALUE", got=f"'{word}'", where="--only", fix="Write --only fraction=0.05")
        valid = [*recipe.grid, *(["sweep"] if recipe.sweeps else []), *recipe.sweeps]
        if key not in valid:
            raise unknown_choice("--only", key, valid)
        try:
            choices.setdefault(key, []).extend(_typed(key, [_value(key, text) for text in values.split(",")]))
        except TwinbudError as error:
            raise error.at("--only") from error
    for key, known in (("pair", recipe.pairs), ("method", recipe.known_methods), ("sweep", recipe.sweeps)):
        for value in choices.get(key, []):
            if value not in known:
                raise unknown_choice(f"--only {key}", value, known)
    return {key: tuple(dict.fromkeys(values)) for key, values in choices.items()}


def _value(key: str, text: str) -> Any:
    if key in ("data", "pair", "method", "sweep"):
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if isinstance(value, bool) and text not in ("true", "false"):
        value = text  # on and off are words of some settings
    if key == "sampling" and (type(value) is not int or value < 0):
        raise TwinbudError("a sampling of at least 0", got=f"'{text}'", where="sampling")
    return value


def plan_cells(
    recipe: Recipe, choices: Mapping[str, Sequence[Any]] | None = None, profile: Profile | None = None
) -> tuple[Cell, ...]:
    """Every run that the recipe, narrowed by the choices, asks for, each of its settings checked.

    Raises:
        TwinbudError: A setting's value of another type or out of its range, or nothing is left.
    """
    if not recipe.grid:
        raise TwinbudError(
            "a recipe with runs",
            got="one that only lists architectures",
            where=recipe.path,
            fix="Give it to 'twinbud tables'",
        )
    if profile is not None and profile not in PROFILES:
        raise unknown_choice("--profile", profile, PROFILES)
    choices = choices or {}
    axes = {axis: choices.get(axis, _typed(axis, values, recipe, "grid")) for axis, values in recipe.grid.items()}
    cells = [
        Cell(
            coordinates=coordinates | step,
            settings=_settings(recipe, coordinates, step, profile),
            default=_settings(recipe, coordinates, {}, profile) if step else None,
        )
        for coordinates in _combinations(axes)
        for step in _steps(recipe, choices)
    ]
    if not cells:
        raise TwinbudError("at least one run", got="none", where="--only", fix="Widen the choice")
    for cell in cells:
        try:
            checked_config(cell.settings)
        except TwinbudError as error:
            said = f", --profile {profile}" if profile else ""
            raise error.at(f"{recipe.path}, {describe_coordinates(cell.coordinates)}{said}") from error
    return tuple(cells)


def checked_config(settings: Mapping[str, Any]) -> RunConfig:
    """The run that a cell's settings describe, wherever it will be kept.

    Raises:
        TwinbudError: See ``run_config``.
    """
    return run_config(settings, output=Path("-"))


def _combinations(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    order = [*_OUTERMOST, *(axis for axis in axes if axis not in AXES)]
    for values in itertools.product(*(axes[axis] for axis in order)):
        yield dict(zip(order, values, strict=True))


def _steps(recipe: Recipe, choices: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """What the sweeps add to each combination; without sweeps nothing."""
    if not recipe.sweeps:
        return [{}]
    return [
        {"sweep": name, "value": value}
        for name, values in recipe.sweeps.items()
        if name in choices.get("sweep", recipe.sweeps)
        for value in choices.get(name, _typed(name, values, recipe, "sweeps"))
    ]


def _typed(axis: str, values: Sequence[Any], recipe: Recipe | None = None, part: str = "") -> tuple[Any, ...]:
    """The values of an axis as the setting's type, each once: YAML reads 1e-2 as text.

    Raises:
        TwinbudError: One of them is none, in this part of this recipe.
    """
    if axis in ("data", "pair", "method", "sampling", "sweep"):
        return tuple(values)
    try:
        return tuple(dict.fromkeys(read_setting(axis, value) for value in values))
    except TwinbudError as error:
        raise (error.at(f"{recipe.path}: {part}.{axis}") if recipe else error) from error


def _settings(
    recipe: Recipe, coordinates: Mapping[str, Any], step: Mapping[str, Any], profile: Profile | None
) -> dict[str, Any]:
    pair, method = recipe.pairs[coordinates["pair"]], coordinates["method"]
    extra = {name: value for name, value in coordinates.items() if name not in AXES}
    return {
        "profile": profile or recipe.profile,
        **recipe.settings,
        "data": coordinates["data"],
        "teacher": pair.teacher,
        "student": pair.student,
        "fraction": coordinates["fraction"],
        "seed": coordinates["sampling"],
        "method": method,
        **recipe.methods.get(method, {}),
        **extra,
        **({step["sweep"]: step["value"]} if step else {}),
    }
