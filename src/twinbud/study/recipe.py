"""A recipe: one experiment in a YAML file, as a grid of runs short enough to read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from twinbud.config.loading import setting_names
from twinbud.config.schema import PROFILES, Method, Profile
from twinbud.core.errors import TwinbudError, unknown_choice
from twinbud.core.files import read_yaml
from twinbud.study.paper import paper_pairs, paper_tables

AXES = ("data", "pair", "method", "fraction", "sampling")
"""What every grid says; any setting may be a further axis."""
SHARED = frozenset({"image_column", "label_column", "patient_column", "split_column", "skip_broken", "max_megapixels"})
"""Settings that decide what a set of images is, and so are the same for all runs."""
RESERVED = frozenset({"data", "teacher", "student", "selected", "split", "seed", "fraction", "profile", "device"})
"""Settings that the axes, the command line or the machine decide."""
_UNPAIRED = frozenset({"data", "fraction", "sampling", "subset", "split_seed", "split_duplicates"})
"""Axes along which the labelled images differ, so that nothing on them can be compared image by image."""
_KEYS = ("title", "profile", "pairs", "methods", "grid", "sweeps", "settings", "baseline", "paper", "architectures")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A teacher and the student cut out of it, as ``--teacher`` and ``--student`` spell them.

    Attributes:
        teacher: Its name.
        student: Its name, or "half".
        paper: The paper's pair whose numbers stand beside, by its name in ``paper-tables.json``; None for none.
    """

    teacher: str
    student: str
    paper: str | None = None


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """Which of the paper's numbers stand beside ours.

    Attributes:
        table: Its name in ``paper-tables.json``.
        methods: What the paper calls each of our methods.
    """

    table: str
    methods: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One experiment.

    Attributes:
        path: The file, as it was given.
        name: The file's name without its ending.
        title: One line for the tables.
        profile: Where the defaults of all settings come from.
        pairs: Teacher and student by name.
        methods: Settings by name, besides the methods that ``twinbud train`` knows.
        grid: The values of each axis; empty where the recipe only lists architectures.
        sweeps: Settings varied one at a time from their default, each with its values.
        settings: What all runs share.
        baseline: Values of some axes; every other value is compared with these, sampling by sampling.
        paper: The paper's numbers to show.
        architectures: Names of the pairs to count parameters of.
        digest: SHA-256 of what the file says, comments aside.
    """

    path: str
    name: str
    title: str
    profile: Profile
    pairs: Mapping[str, Pair]
    methods: Mapping[str, Mapping[str, Any]]
    grid: Mapping[str, tuple[Any, ...]]
    sweeps: Mapping[str, tuple[Any, ...]]
    settings: Mapping[str, Any]
    baseline: Mapping[str, Any]
    paper: PaperTable | None
    architectures: tuple[str, ...]
    digest: str = field(repr=False)

    @property
    def known_methods(self) -> tuple[str, ...]:
        """Methods that a grid or ``--only`` may name."""
        return (*get_args(Method), *self.methods)


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        TwinbudError: No such file, not YAML, an unknown key, pair, method or setting, or an empty grid.
    """
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TwinbudError("a YAML recipe", got=f"none ({reason})", where=str(path)) from error
    content = _mapping(content, str(path))
    _known(content, _KEYS, str(path))
    reading = _Reading(str(path), content)
    recipe = Recipe(
        path=str(path),
        name=path.stem,
        title=str(content.get("title", path.stem)),
        profile=reading.profile(),
        pairs=reading.pairs(),
        methods=reading.methods(),
        grid=reading.grid(),
        sweeps=reading.sweeps(),
        settings=reading.settings(),
        baseline=reading.section("baseline"),
        paper=reading.paper(),
        architectures=reading.architectures(),
        digest=hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest(),
    )
    _check(recipe, str(path))
    return recipe


@dataclass(frozen=True)
class _Reading:
    """The parts of one file, each with its place for errors."""

    path: str
    content: Mapping[str, Any]

    def section(self, key: str) -> Mapping[str, Any]:
        return _mapping(self.content.get(key) or {}, f"{self.path}: {key}")

    def values(self, where: str, given: Any) -> list[Any]:
        values = given if isinstance(given, list) else [given]
        if not values or any(isinstance(value, list | dict) or value is None for value in values):
            got = "none" if not values else "something else"
            raise TwinbudError("a list of values", got=got, where=f"{self.path}: {where}", fix="Name at least one")
        return list(dict.fromkeys(values))

    def profile(self) -> Profile:
        profile = self.content.get("profile", "paper")
        if profile not in PROFILES:
            raise unknown_choice(f"{self.path}: profile", profile, PROFILES)
        return profile

    def pairs(self) -> Mapping[str, Pair]:
        pairs = {}
        for name, given in self.section("pairs").items():
            where = f"{self.path}: pairs.{name}"
            given = _mapping(given, where)
            _known(given, ("teacher", "student", "paper"), where)
            if "teacher" not in given:
                raise TwinbudError("a teacher", got="none", where=where, fix="Write teacher: NAME, student: NAME")
            words = {key: str(value) for key, value in given.items()}
            pairs[str(name)] = Pair(**{"student": "half"} | words)
        return pairs

    def methods(self) -> Mapping[str, Mapping[str, Any]]:
        methods = {}
        for name, given in self.section("methods").items():
            where = f"{self.path}: methods.{name}"
            methods[str(name)] = _mapping(given, where)
            _known(methods[str(name)], _varied_settings(), where)
        return methods

    def grid(self) -> Mapping[str, tuple[Any, ...]]:
        given = self.section("grid")
        _known(given, (*AXES, *_varied_settings()), f"{self.path}: grid")
        values = {axis: self.values(f"grid.{axis}", given[axis]) for axis in given}
        if "sampling" in given and isinstance(given["sampling"], int):
            values["sampling"] = list(range(given["sampling"]))
        if missing := [axis for axis in AXES if given and not values.get(axis)]:
            where = f"{self.path}: grid"
            raise TwinbudError(f"values of {', '.join(AXES)}", got=f"none of {', '.join(missing)}", where=where)
        return {axis: tuple(values[axis]) for axis in (*AXES, *sorted(set(given) - set(AXES))) if given}

    def sweeps(self) -> Mapping[str, tuple[Any, ...]]:
        given = self.section("sweeps")
        _known(given, _varied_settings(), f"{self.path}: sweeps")
        return {name: tuple(self.values(f"sweeps.{name}", values)) for name, values in given.items()}

    def settings(self) -> Mapping[str, Any]:
        settings = self.section("settings")
        _known(settings, _free_settings(), f"{self.path}: settings")
        return settings

    def architectures(self) -> tuple[str, ...]:
        if "architectures" not in self.content:
            return ()
        return tuple(map(str, self.values("architectures", self.content["architectures"])))

    def paper(self) -> PaperTable | None:
        given = self.section("paper")
        if not given:
            return None
        _known(given, ("table", "methods"), f"{self.path}: paper")
        methods = _mapping(given.get("methods") or {}, f"{self.path}: paper.methods")
        return PaperTable(table=str(given.get("table")), methods={str(k): str(v) for k, v in methods.items()})


def _check(recipe: Recipe, path: str) -> None:
    """What one part of a recipe needs of another."""
    _named(recipe.architectures, recipe.pairs, f"{path}: architectures")
    for name, pair in recipe.pairs.items():
        _named([pair.paper] if pair.paper else [], paper_pairs(), f"{path}: pairs.{name}.paper")
    if recipe.paper:
        _named([recipe.paper.table], paper_tables(), f"{path}: paper.table")
        _named(recipe.paper.methods, recipe.known_methods, f"{path}: paper.methods")
    if not recipe.grid:
        if recipe.architectures:
            return
        raise TwinbudError("a grid of runs", got="an empty one", where=path, fix="Write grid: or architectures:")
    _named(recipe.grid["pair"], recipe.pairs, f"{path}: grid.pair")
    _named(recipe.grid["method"], recipe.known_methods, f"{path}: grid.method")
    for axis, value in recipe.baseline.items():
        _named([axis], [axis for axis in recipe.grid if axis not in _UNPAIRED], f"{path}: baseline")
        _named([value], recipe.grid[axis], f"{path}: baseline.{axis}")
    for name in ("threads", "precision"):
        if recipe.settings.get(name) in (None, "auto", "none"):
            raise TwinbudError(
                "a fixed value, since numbers depend on it",
                got=str(recipe.settings.get(name, "none")),
                where=f"{path}: settings.{name}",
                fix="Write settings: {threads: 1, precision: float32}",
            )


def _named(names: Iterable[Any], valid: Collection[Any], where: str) -> None:
    for name in names:
        if name not in valid:
            raise unknown_choice(where, name, map(str, valid))


def _free_settings() -> tuple[str, ...]:
    return tuple(name for name in setting_names() if name not in RESERVED)


def _varied_settings() -> tuple[str, ...]:
    """Those in which the runs of a recipe may differ."""
    return tuple(name for name in _free_settings() if name not in SHARED)


def _known(given: Mapping[str, Any], valid: tuple[str, ...], where: str) -> None:
    _named(given, valid, where)


def _mapping(given: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise TwinbudError("NAME: VALUE", got="something else", where=where)
    return given
