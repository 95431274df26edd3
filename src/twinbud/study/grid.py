"""From a recipe to its runs: every combination of the axes, or those that ``--only`` selects."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinbud.config.loading import read_setting, run_config
from twinbud.config.profiles import PROFILES
from twinbud.config.schema import WHOLE_METHODS, Profile, RunConfig
from twinbud.core.errors import TwinbudError, unknown_choice
from twinbud.study.recipe import AXES, Recipe

_ORDER = ("data", "pair", "fraction", "sampling", "method")
"""The axes from the outermost loop to the innermost: all methods finish a sampling before the next sampling starts, so
that paired differences are complete early."""
_NAME_AXES = ("data", "pair", "method", "sweep")
"""Axes whose values are names."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One place in the recipe's grid; the paths of the images are not known yet.

    Attributes:
        coordinates: The value on every axis; in a sweep also ``sweep``, the setting's name, and ``value``.
        settings: The settings for ``run_config``; ``data`` is the name of the image set.
        config: The configuration that ``settings`` describe.
        default: The configuration without the sweep's value; None without a sweep.
    """

    coordinates: Mapping[str, Any]
    settings: Mapping[str, Any]
    config: RunConfig
    default: RunConfig | None = None

    @property
    def data(self) -> str:
        """The name of the image set."""
        return str(self.coordinates["data"])


@dataclass(frozen=True)
class SharedTuning:
    """The fine-tuning of a teacher that a run starts from, or consists of.

    Attributes:
        tuning_id: The same for all runs that share the tuned teacher.
        num_steps: Its optimizer steps.
    """

    tuning_id: str
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run that an executor can execute.

    Attributes:
        run_id: See ``twinbud.study.run_id``.
        facts: The facts that ``run_id`` is the checksum of.
        coordinates: The value on every axis of the recipe.
        settings: The settings for ``run_config``.
        num_steps: Optimizer steps of all stages.
        num_test: Images in the test part.
        is_default: Whether it is the run of a sweep that has the default value.
        tuning: The fine-tuning among its stages; None without one.
    """

    run_id: str
    facts: Mapping[str, Any]
    coordinates: Mapping[str, Any]
    settings: Mapping[str, Any]
    num_steps: int
    num_test: int
    is_default: bool = False
    tuning: SharedTuning | None = None

    @property
    def label(self) -> str:
        """``brain-mri · dinov2 · 5 % · sampling 2 · dual``."""
        return describe_coordinates(self.coordinates)


def describe_coordinates(coordinates: Mapping[str, Any]) -> str:
    """Describe a place in the recipe in one line."""
    parts = []
    for axis, value in coordinates.items():
        if axis == "fraction":
            parts.append(f"{100 * value:g} %")
        elif axis == "sweep":
            parts.append(f"{value} {coordinates['value']}")
        elif axis in ("data", "pair", "method"):
            parts.append(str(value))
        elif axis != "value":
            parts.append(f"{axis} {value}")
    return " · ".join(parts)


def parse_only(options: Sequence[str], recipe: Recipe) -> dict[str, tuple[Any, ...]]:
    """Parse ``--only KEY=VALUE,...``; values of a repeated key are joined.

    The recipe must define pairs and methods, but its grid need not contain them. Fractions, samplings and image sets
    can be any.

    Raises:
        TwinbudError: An option is not KEY=VALUE, or has an unknown key, pair, method or sweep.
    """
    chosen: dict[str, list[Any]] = {}
    for option in options:
        key, equals, values = option.partition("=")
        if not equals or not values:
            raise TwinbudError(f"'{option}' is not KEY=VALUE", where="--only", fix="Give a value: --only fraction=0.05")
        valid = [*recipe.grid, *(["sweep"] if recipe.sweeps else []), *recipe.sweeps]
        if key not in valid:
            raise unknown_choice("--only", key, valid)
        try:
            chosen.setdefault(key, []).extend(_convert(key, [_parse_value(key, text) for text in values.split(",")]))
        except TwinbudError as error:
            raise error.at("--only") from error
    for key, known in (("pair", recipe.pairs), ("method", recipe.known_methods), ("sweep", recipe.sweeps)):
        for value in chosen.get(key, []):
            if value not in known:
                raise unknown_choice(f"--only {key}", value, known)
    return {key: tuple(dict.fromkeys(values)) for key, values in chosen.items()}


def _parse_value(key: str, text: str) -> Any:
    if key in _NAME_AXES:
        return text
    if key == "sampling":
        if not (text.isascii() and text.isdecimal()):
            raise TwinbudError(f"'{text}' is not a whole number", where="sampling", fix="Give 0 or more, such as 0,1,2")
        return int(text)
    return text


def plan_cells(
    recipe: Recipe, only: Mapping[str, Sequence[Any]] | None = None, profile: Profile | None = None
) -> tuple[Cell, ...]:
    """List every run of the recipe, narrowed by ``only``, and check its settings.

    Args:
        recipe: The recipe.
        only: The result of ``parse_only``.
        profile: Replaces the recipe's profile.

    Raises:
        TwinbudError: A setting has a value of the wrong type or outside its range.
    """
    if not recipe.grid:
        raise TwinbudError(
            "the recipe has no runs: it only lists architectures", where=recipe.path, fix="Use 'twinbud tables' instead"
        )
    if profile is not None and profile not in PROFILES:
        raise unknown_choice("--profile", profile, PROFILES)
    only = only or {}
    axes = {axis: only.get(axis, _convert(axis, values, recipe, "grid")) for axis, values in recipe.grid.items()}
    sweep_points = _sweep_points(recipe, only)
    return tuple(
        cell for coordinates in _combinations(axes) for cell in _cells(recipe, coordinates, sweep_points, profile)
    )


def _cells(
    recipe: Recipe, coordinates: Mapping[str, Any], sweep_points: Sequence[Mapping[str, Any]], profile: Profile | None
) -> Iterator[Cell]:
    """Yield the runs of one combination of axes: one, or one for each value of each sweep.

    Raises:
        TwinbudError: A setting has a value of the wrong type or outside its range.
    """

    def check(place: Mapping[str, Any], settings: Mapping[str, Any]) -> RunConfig:
        try:
            return checked_config(settings)
        except TwinbudError as error:
            option = f", --profile {profile}" if profile else ""
            raise error.at(f"{recipe.path}, {describe_coordinates(place)}{option}") from error

    default = check(coordinates, _settings(recipe, coordinates, {}, profile)) if recipe.sweeps else None
    for point in sweep_points:
        place, settings = {**coordinates, **point}, _settings(recipe, coordinates, point, profile)
        yield Cell(coordinates=place, settings=settings, config=check(place, settings), default=default)


def checked_config(settings: Mapping[str, Any]) -> RunConfig:
    """Return the configuration of a cell, without an output folder.

    Raises:
        TwinbudError: See ``run_config``.
    """
    return run_config(settings, output=Path("-"))


def _combinations(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    order = [*_ORDER, *(axis for axis in axes if axis not in AXES)]
    for values in itertools.product(*(axes[axis] for axis in order)):
        yield dict(zip(order, values, strict=True))


def _sweep_points(recipe: Recipe, only: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return the coordinates that the sweeps add to each combination; a single empty one without sweeps."""
    if not recipe.sweeps:
        return [{}]
    return [
        {"sweep": name, "value": value}
        for name, values in recipe.sweeps.items()
        if name in only.get("sweep", recipe.sweeps)
        for value in only.get(name, _convert(name, values, recipe, "sweeps"))
    ]


def _convert(axis: str, values: Sequence[Any], recipe: Recipe | None = None, section: str = "") -> tuple[Any, ...]:
    """Convert the values of an axis to the setting's type, without repetitions: YAML reads 1e-2 as text.

    Raises:
        TwinbudError: A value has the wrong type; the error names ``section`` of ``recipe``.
    """
    if axis in _NAME_AXES or axis == "sampling":
        return tuple(values)
    try:
        return tuple(dict.fromkeys(read_setting(axis, value) for value in values))
    except TwinbudError as error:
        raise (error.at(f"{recipe.path}: {section}.{axis}") if recipe else error) from error


def _settings(
    recipe: Recipe, coordinates: Mapping[str, Any], sweep_point: Mapping[str, Any], profile: Profile | None
) -> dict[str, Any]:
    """Merge the settings of a run. Later ones win: profile, recipe, method, axes, sweep.

    A method that keeps a network whole has the pair's teacher as student, unless it names another network.
    """
    pair, method = recipe.pairs[coordinates["pair"]], coordinates["method"]
    own = recipe.methods.get(method, {})
    is_whole = own.get("method", method) in WHOLE_METHODS
    return {
        "profile": profile or recipe.profile,
        **recipe.settings,
        "data": coordinates["data"],
        "teacher": pair.teacher,
        "student": "same" if is_whole else pair.student,
        "fraction": coordinates["fraction"],
        "seed": coordinates["sampling"],
        "method": method,
        **own,
        **{name: value for name, value in coordinates.items() if name not in AXES},
        **({sweep_point["sweep"]: sweep_point["value"]} if sweep_point else {}),
    }
