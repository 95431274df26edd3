"""A recipe: one experiment in a YAML file, as a grid of runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from twinbud.config.loading import flatten_settings, read_setting
from twinbud.config.profiles import PROFILES
from twinbud.config.schema import Method, Profile
from twinbud.config.settings import all_settings
from twinbud.core.errors import TwinbudError, unknown_choice
from twinbud.core.files import read_yaml
from twinbud.study.pairing import DRAWN_BY
from twinbud.study.paper import paper_pairs, paper_tables

AXES = ("data", "pair", "method", "fraction", "sampling")
"""The axes of every grid; settings can be further axes."""
SHARED = frozenset({
    "image_column", "label_column", "label_columns", "patient_column", "split_column", "window", "frames", "axis",
    "volume", "patient_salt", "skip_broken", "max_megapixels", "threads",
})  # fmt: skip
"""Settings that are the same for all runs: those that define an image set, and the cores of each worker."""
RESERVED = frozenset({
    "data", "data_root", "teacher", "student", "selected", "split", "seed", "method", "fraction", "profile", "device",
})  # fmt: skip
"""Settings that the axes, the command line or the machine define."""
_UNPAIRED = frozenset({"data", "sampling", *DRAWN_BY})
"""Axes along which the labelled or test images differ, so that runs cannot be compared sampling by sampling."""
_KEYS = ("title", "profile", "pairs", "methods", "grid", "sweeps", "settings", "baseline", "paper", "architectures")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A teacher and its student, as ``--teacher`` and ``--student`` take them.

    Attributes:
        teacher: Name of the teacher.
        student: Name of the student, "half" or "quarter".
        paper: Name of the paper's pair in ``paper-tables.json`` whose results are shown, too; None for none.
    """

    teacher: str
    student: str
    paper: str | None = None


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """The results of the paper to show next to those of the study.

    Attributes:
        table: Name of the table in ``paper-tables.json``.
        methods: The paper's name of each method.
    """

    table: str
    methods: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One experiment.

    Attributes:
        path: Path of the file, as given.
        name: Name of the file without its suffix.
        title: Title of the tables, one line.
        profile: The profile that supplies the defaults of all settings.
        pairs: Teacher and student by name.
        methods: Settings by name, in addition to the methods of ``twinbud train``.
        grid: Values of each axis; empty if the recipe only lists architectures.
        sweeps: Settings that vary one at a time from their default, with their values.
        settings: Settings of all runs.
        baseline: Values of some axes; the other values are compared with these, sampling by sampling.
        paper: The results of the paper to show.
        architectures: Names of the pairs whose parameters are counted.
        digest: SHA-256 of the contents without comments.
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
        """Methods that a grid or ``--only`` can name."""
        return (*get_args(Method), *self.methods)


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        TwinbudError: The file cannot be read, is not YAML, has an unknown key, pair, method or setting, or has no grid.
    """
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        fix = "Give a YAML file, such as those in recipes/"
        raise TwinbudError(f"the recipe cannot be read ({reason})", where=str(path), fix=fix) from error
    content = _require_mapping({} if content is None else content, str(path))
    _require_known(content, _KEYS, str(path))
    parser = _RecipeParser(str(path), content)
    recipe = Recipe(
        path=str(path),
        name=path.stem,
        title=" ".join(str(content.get("title") or path.stem).split()),
        profile=parser.profile(),
        pairs=parser.pairs(),
        methods=parser.methods(),
        grid=parser.grid(),
        sweeps=parser.sweeps(),
        settings=parser.settings(),
        baseline=parser.baseline(),
        paper=parser.paper(),
        architectures=parser.architectures(),
        digest=hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest(),
    )
    _check(recipe)
    return recipe


@dataclass(frozen=True)
class _RecipeParser:
    """Parses the sections of one file; errors name the path and the section."""

    path: str
    content: Mapping[str, Any]

    def where(self, section: str) -> str:
        return f"{self.path}: {section}"

    def section(self, key: str) -> Mapping[str, Any]:
        return _require_mapping(self.content.get(key) or {}, self.where(key))

    def values(self, section: str, given: Any) -> list[Any]:
        """Return a list of distinct values; a single value is a list of one."""
        values = given if isinstance(given, list) else [given]
        if not values or any(isinstance(value, list | dict) or value is None for value in values):
            problem = "the list is empty" if not values else f"{given} is not a list of single values"
            raise TwinbudError(problem, where=self.where(section), fix="Give at least one value")
        return list(dict.fromkeys(values))

    def profile(self) -> Profile:
        profile = self.content.get("profile", "paper")
        if profile not in list(PROFILES):  # a list in the file has no hash
            raise unknown_choice(self.where("profile"), profile, PROFILES)
        return profile

    def pairs(self) -> Mapping[str, Pair]:
        pairs = {}
        for name, given in self.section("pairs").items():
            where = self.where(f"pairs.{name}")
            given = _require_mapping(given, where)
            _require_known(given, ("teacher", "student", "paper"), where)
            names = {key: str(value) for key, value in given.items() if value is not None}
            if "teacher" not in names:
                raise TwinbudError("the pair has no teacher", where=where, fix="Write teacher: NAME, student: NAME")
            pairs[name] = Pair(**{"student": "half"} | names)
        return pairs

    def methods(self) -> Mapping[str, Mapping[str, Any]]:
        methods = {}
        for name, given in self.section("methods").items():
            where = self.where(f"methods.{name}")
            methods[name] = flatten_settings(given, where)
            _require_known(methods[name], (*_varied_settings(), "method", "student"), where)
        return methods

    def grid(self) -> Mapping[str, tuple[Any, ...]]:
        given = self.section("grid")
        _require_known(given, (*AXES, *_varied_settings()), self.where("grid"))
        if not given:
            return {}
        values = {axis: self.values(f"grid.{axis}", given[axis]) for axis in given}
        if type(num := given.get("sampling")) is int and num >= 0:  # a bool is not a number of samplings
            values["sampling"] = list(range(num))
        if missing := [axis for axis in AXES if not values.get(axis)]:
            problem = f"{', '.join(missing)} {'has' if len(missing) == 1 else 'have'} no values"
            raise TwinbudError(problem, where=self.where("grid"), fix=f"Give values of {', '.join(AXES)}")
        for axis in ("data", "pair", "method"):
            for value in values[axis]:
                if not isinstance(value, str):
                    where = self.where(f"grid.{axis}")
                    raise TwinbudError(f"{value} is not a name", where=where, fix=f'Write "{value}"')
        where = self.where("grid.sampling")
        for value in values["sampling"]:
            if type(value) is not int or value < 0:
                fix = "Give a number of samplings, or a list such as [0, 1, 2]"
                raise TwinbudError(f"{value} is not a whole number of at least 0", where=where, fix=fix)
        return {axis: tuple(values[axis]) for axis in (*AXES, *sorted(set(given) - set(AXES)))}

    def sweeps(self) -> Mapping[str, tuple[Any, ...]]:
        given = self.section("sweeps")
        _require_known(given, _varied_settings(), self.where("sweeps"))
        return {name: tuple(self.values(f"sweeps.{name}", values)) for name, values in given.items()}

    def settings(self) -> Mapping[str, Any]:
        settings = flatten_settings(self.section("settings"), self.where("settings"))
        _require_known(settings, _free_settings(), self.where("settings"))
        return settings

    def baseline(self) -> Mapping[str, Any]:
        given = self.section("baseline")
        return {axis: _typed(axis, value, self.where(f"baseline.{axis}")) for axis, value in given.items()}

    def architectures(self) -> tuple[str, ...]:
        if "architectures" not in self.content:
            return ()
        return tuple(map(str, self.values("architectures", self.content["architectures"])))

    def paper(self) -> PaperTable | None:
        given = self.section("paper")
        if not given:
            return None
        _require_known(given, ("table", "methods"), self.where("paper"))
        methods = _require_mapping(given.get("methods") or {}, self.where("paper.methods"))
        return PaperTable(table=str(given.get("table")), methods={key: str(value) for key, value in methods.items()})


def _check(recipe: Recipe) -> None:
    """Check what the sections require of each other."""
    path = recipe.path
    _require_known(recipe.architectures, recipe.pairs, f"{path}: architectures")
    for name, pair in recipe.pairs.items():
        _require_known([pair.paper] if pair.paper else [], paper_pairs(), f"{path}: pairs.{name}.paper")
    if recipe.paper:
        _require_known([recipe.paper.table], paper_tables(), f"{path}: paper.table")
        _require_known(recipe.paper.methods, recipe.known_methods, f"{path}: paper.methods")
    if not recipe.grid:
        if recipe.architectures:
            return
        raise TwinbudError("the recipe has no grid", where=path, fix="Write grid: or architectures:")
    if recipe.architectures:
        fix = "Keep one of them, or write two recipes"
        raise TwinbudError("the recipe has a grid and lists architectures", where=path, fix=fix)
    _require_known(recipe.grid["pair"], recipe.pairs, f"{path}: grid.pair")
    _require_known(recipe.grid["method"], recipe.known_methods, f"{path}: grid.method")
    for axis, value in recipe.baseline.items():
        _require_known([axis], [axis for axis in recipe.grid if axis not in _UNPAIRED], f"{path}: baseline")
        values = [_typed(axis, value, f"{path}: grid.{axis}") for value in recipe.grid[axis]]
        _require_known([value], values, f"{path}: baseline.{axis}")
    if both := [name for name in recipe.sweeps if name in recipe.grid]:
        problem = f"'{both[0]}' is an axis of the grid, too, whose values the sweep would replace"
        raise TwinbudError(problem, where=f"{path}: sweeps", fix="Keep one of them")
    for name in ("threads", "precision"):
        _require_fixed(name, recipe.settings.get(name), f"{path}: settings.{name}")
    for section, values in (
        *((f"methods.{name}", [given["precision"]]) for name, given in recipe.methods.items() if "precision" in given),
        ("grid", recipe.grid.get("precision", ())),
        ("sweeps", recipe.sweeps.get("precision", ())),
    ):
        for value in values:
            _require_fixed("precision", value, f"{path}: {section}.precision")


def _require_fixed(name: str, value: Any, where: str) -> None:
    """Refuse a value of ``threads`` or ``precision`` that each machine would resolve by itself."""
    if value in (None, "auto", "none"):
        raise TwinbudError(
            f"{'the value is missing' if value is None else f'{value!r} depends on the machine'}, but the numbers "
            "of a run depend on it",
            where=where,
            fix=f"Write {name}: {'1' if name == 'threads' else 'float32'}",
        )


def _typed(axis: str, value: Any, where: str) -> Any:
    """Return a value as the coordinates of runs have it: that of a setting in the setting's type."""
    if axis in AXES or axis not in all_settings():
        return value
    try:
        return read_setting(axis, value)
    except TwinbudError as error:
        raise error.at(where) from error


def _free_settings() -> tuple[str, ...]:
    """Return the settings that a recipe can set."""
    return tuple(name for name in all_settings() if name not in RESERVED)


def _varied_settings() -> tuple[str, ...]:
    """Return the settings that can differ between the runs of a recipe."""
    return tuple(name for name in _free_settings() if name not in SHARED)


def _require_known(names: Iterable[Any], valid: Collection[Any], where: str) -> None:
    for name in names:
        if name not in valid:
            raise unknown_choice(where, name, map(str, valid))


def _require_mapping(given: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(given, dict):
        fix = "Write NAME: VALUE lines, such as `dual: {method: dual}`"
        raise TwinbudError(f"{str(given)[:60]!r} is not a mapping", where=where, fix=fix)
    return given
