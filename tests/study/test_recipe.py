"""Recipes: the runs they list, and the errors of recipes that cannot be used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.studies import recipe_content, save_recipe
from twinbud.config.loading import read_setting
from twinbud.config.profiles import PROFILES
from twinbud.config.teacher_spec import WHEEL_NAMES
from twinbud.core.errors import TwinbudError
from twinbud.study.grid import parse_only, plan_cells
from twinbud.study.recipe import Recipe, read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
PAPER = sorted((RECIPES / "paper").glob("*.yaml"))
BEYOND = sorted((RECIPES / "beyond").glob("*.yaml"))
NUM_RUNS = {
    "tables-2-4": 450, "table5": 270, "figure6": 270, "table6": 315, "table7": 180, "table8": 6, "controls": 75,
    "teacher-capacity": 90,
}  # fmt: skip


def small(tmp_path: Path, **changes: Any) -> Recipe:
    return read_recipe(save_recipe(tmp_path / "small.yaml", recipe_content("dinov2-small", **changes)))


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_every_recipe_of_the_paper_lists_the_documented_number_of_runs(path: Path) -> None:
    recipe = read_recipe(path)
    if path.stem == "table1":
        assert recipe.architectures == ("vit", "convnext", "dinov2")
        return
    assert len(plan_cells(recipe)) == NUM_RUNS[path.stem]
    assert recipe.sweeps or recipe.baseline, "a study without a comparison shows nothing"


@pytest.mark.parametrize("path", BEYOND, ids=lambda path: path.stem)
def test_every_method_of_the_recipes_beyond_the_paper_is_valid(path: Path) -> None:
    recipe = read_recipe(path)
    cells = plan_cells(recipe, {"method": tuple(recipe.known_methods)})
    assert {cell.coordinates["method"] for cell in cells} >= set(recipe.methods)
    assert recipe.baseline
    assert f"recipes/beyond/{path.name}" in path.read_text(encoding="utf-8")


def test_the_method_best_equals_the_profile_best() -> None:
    recipe = read_recipe(RECIPES / "beyond" / "alternatives.yaml")
    assert recipe.profile == "best"
    assert recipe.methods["best"] == {"method": PROFILES["best"]["method"]}
    large = read_recipe(RECIPES / "beyond" / "full-size.yaml")
    unused = {"learning_rate", "layer_decay"}  # of a student that is not trained
    ours = {
        name: value
        for name, value in PROFILES["best"].items()
        if PROFILES[large.profile].get(name) != value and name not in unused
    }
    found = {name: read_setting(name, value) for name, value in large.methods["best"].items()}
    assert found == ours
    assert large.settings["tune_epochs"] == large.settings["epochs"]


@pytest.mark.parametrize("path", [*PAPER, *BEYOND], ids=lambda path: path.stem)
def test_every_recipe_names_pretrained_weights(path: Path) -> None:
    for pair in read_recipe(path).pairs.values():
        assert pair.teacher in WHEEL_NAMES or "." in pair.teacher, "a timm tag names the weights"
        assert "local-dir:" not in pair.teacher


def test_all_methods_of_a_sampling_come_before_the_next_sampling(tmp_path: Path) -> None:
    cells = plan_cells(small(tmp_path))
    order = [(cell.coordinates["sampling"], cell.coordinates["method"]) for cell in cells]
    assert order == [(0, "dual"), (0, "selection"), (1, "dual"), (1, "selection")]


def test_settings_of_axes_override_the_method_then_the_recipe_then_the_profile(tmp_path: Path) -> None:
    recipe = small(
        tmp_path,
        methods={"slow": {"method": "dual", "learning_rate": 1e-6, "beta": 0.5}},
        grid=recipe_content("x")["grid"] | {"method": ["slow"], "sampling": [7], "beta": [0.7]},
        baseline=None,
    )
    (cell,) = plan_cells(recipe, profile="quick")
    given = {"profile": "quick", "method": "dual", "seed": 7, "fraction": 1.0, "learning_rate": 1e-6, "beta": 0.7}
    assert {name: cell.settings[name] for name in given} == given
    assert cell.settings["image_size"] == 28


def test_values_are_converted_to_the_type_of_their_setting(tmp_path: Path) -> None:
    """YAML reads 1e-2 as text; two spellings of one number are one value."""
    grid = {**recipe_content("–")["grid"], "fraction": ["1e-2", 0.01, 1], "sampling": 1, "method": ["dual"]}
    cells = plan_cells(small(tmp_path, grid=grid, baseline=None))
    assert [cell.settings["fraction"] for cell in cells] == [0.01, 1.0]
    swept = plan_cells(small(tmp_path, sweeps={"temperature": ["2", "auto"]}))
    assert {cell.settings["temperature"] for cell in swept} == {2.0, "auto"}
    grid["fraction"] = ["half"]
    with pytest.raises(TwinbudError, match=r"small\.yaml: grid\.fraction: .*'half'"):
        plan_cells(small(tmp_path, grid=grid, baseline=None))
    with pytest.raises(TwinbudError, match=r"small\.yaml: sweeps\.alpha: .*'x'"):
        plan_cells(small(tmp_path, sweeps={"alpha": ["x"]}))


def test_only_does_not_read_values_as_yaml(tmp_path: Path) -> None:
    """In YAML, on is a boolean and 010 is octal."""
    recipe = small(tmp_path, sweeps={"compile": ["auto", "on"], "swap_roles": [True]})
    assert parse_only(["compile=off", "swap_roles=false"], recipe) == {"compile": ("off",), "swap_roles": (False,)}
    assert parse_only(["sampling=010"], recipe) == {"sampling": (10,)}


def test_a_sweep_varies_one_setting_at_a_time(tmp_path: Path) -> None:
    sweeps = {"alpha": [0.2, 0.6], "beta": [0.5]}
    grid = recipe_content("x")["grid"] | {"method": ["dual"], "sampling": 1}
    cells = plan_cells(small(tmp_path, grid=grid, sweeps=sweeps, baseline=None))
    steps = [(c.coordinates["sweep"], c.coordinates["value"], c.settings.get("alpha")) for c in cells]
    assert steps == [("alpha", 0.2, 0.2), ("alpha", 0.6, 0.6), ("beta", 0.5, None)]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (["sampling=0"], 2),
        (["sampling=0,1,2,3,4"], 10),
        (["method=timm", "method=dual"], 4),
        (["fraction=0.5", "method=dual"], 2),
        (["data=elsewhere"], 4),
    ],
)
def test_only_narrows_the_grid_or_selects_what_the_recipe_defines(
    options: list[str], count: int, tmp_path: Path
) -> None:
    recipe = small(tmp_path)
    assert len(plan_cells(recipe, parse_only(options, recipe))) == count


def test_only_narrows_the_sweeps(tmp_path: Path) -> None:
    recipe = small(tmp_path, sweeps={"alpha": [0.2, 0.6], "beta": [0.5, 0.9]}, baseline=None)
    assert len(plan_cells(recipe, parse_only(["sweep=alpha"], recipe))) == 8
    assert len(plan_cells(recipe, parse_only(["alpha=0.2", "sampling=0"], recipe))) == 6


def drop(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


def put(value: Any, *path: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put(1, "grdi"), ("small.yaml: ", "'grdi'", "Did you mean 'grid'?")),
        (put("dula", "grid", "method"), ("grid.method: ", "'dula'", "Did you mean 'dual'?")),
        (put(["huge"], "grid", "pair"), ("grid.pair: ", "'huge'", "tiny")),
        (put(["x"], "grid", "color"), ("small.yaml: grid: ", "'color'")),
        (put([0], "grid", "seed"), ("small.yaml: grid: ", "'seed'")),
        (put([], "grid", "method"), ("grid.method: the list is empty.",)),
        (put([[1]], "grid", "method"), ("grid.method: [[1]] is not a list of single values.",)),
        (put(0, "grid", "sampling"), ("small.yaml: grid: sampling has no values.",)),
        (put(True, "grid", "sampling"), ("grid.sampling: True is not a whole number of at least 0.",)),
        (put([0, -1], "grid", "sampling"), ("grid.sampling: -1 is not a whole number of at least 0.",)),
        (put([7], "grid", "data"), ('grid.data: 7 is not a name. Write "7".',)),
        (drop("grid", "fraction"), ("small.yaml: grid: fraction has no values.",)),
        (drop("grid"), ("small.yaml: the recipe has no grid.",)),
        (put({}, "grid"), ("small.yaml: the recipe has no grid.",)),
        (put({"epoch": 3}, "settings"), ("small.yaml: settings: ", "Did you mean 'epochs'?")),
        (drop("settings", "threads"), ("settings.threads: the value is missing",)),
        (put("auto", "settings", "precision"), ("settings.precision: 'auto' depends on the machine",)),
        (put({"x": {"rul": "random"}}, "methods"), ("methods.x: ", "Did you mean 'rule'?")),
        (put({"method": "timm"}, "baseline"), ("baseline.method: ", "'timm'", "dual, selection")),
        (put({"fraction": 1.0}, "baseline"), ("small.yaml: baseline: ", "'fraction'", "pair, method")),
        (put({"data": "shades"}, "baseline"), ("small.yaml: baseline: ", "'data'", "pair, method")),
        (put(["subject"], "grid", "patient_column"), ("small.yaml: grid: ", "'patient_column'")),
        (put({"x": {"skip_broken": True}}, "methods"), ("methods.x: ", "'skip_broken'")),
        (put({"student": "half"}, "pairs", "tiny"), ("pairs.tiny: the pair has no teacher.",)),
        (put("vit", "pairs", "tiny", "paper"), ("pairs.tiny.paper: ", "'vit'", "vit_small -> vit_tiny")),
        (put({"table": "table 9"}, "paper"), ("paper.table: ", "'table 9'", "tables 2-4")),
        (put({"student": "half", "teacher": None}, "pairs", "tiny"), ("pairs.tiny: the pair has no teacher.",)),
        (put(-1, "grid", "sampling"), ("grid.sampling: -1 is not a whole number of at least 0.",)),
        (put([7], "grid", "pair"), ('grid.pair: 7 is not a name. Write "7".',)),
        (put([True], "grid", "method"), ("grid.method: True is not a name.",)),
        (put([1, 2], "grid", "threads"), ("small.yaml: grid: ", "'threads'")),
        (put({"x": {"threads": 2}}, "methods"), ("methods.x: ", "'threads'")),
        (put({"x": {"label_columns": "a,b"}}, "methods"), ("methods.x: ", "'label_columns'")),
        (put({"x": {"precision": "auto"}}, "methods"), ("methods.x.precision: 'auto' depends on the machine",)),
        (put(["bf16", "auto"], "grid", "precision"), ("grid.precision: 'auto' depends on the machine",)),
        (put({"precision": ["auto"]}, "sweeps"), ("sweeps.precision: 'auto' depends on the machine",)),
        (put("dual", "settings", "method"), ("small.yaml: settings: ", "'method'")),
        (put({"method": ["dual"]}, "sweeps"), ("small.yaml: sweeps: ", "'method'")),
        (put(["tiny"], "architectures"), ("small.yaml: the recipe has a grid and lists architectures.",)),
        (put(["quick"], "profile"), ("small.yaml: profile: ", "'['quick']'", "best, quick, paper")),
        (put("fast", "profile"), ("small.yaml: profile: ", "'fast'", "best, quick, paper")),
        (
            put([3], "pairs"),
            ("small.yaml: pairs: '[3]' is not a mapping. Write NAME: VALUE lines, such as ",),
        ),
        (put({"alhpa": [1]}, "sweeps"), ("small.yaml: sweeps: ", "Did you mean 'alpha'?")),
        (put(["tiny", "big"], "architectures"), ("architectures: ", "'big'", "tiny")),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, tuple) else "",
)
def test_a_wrong_recipe_is_refused_in_one_line(
    change: Callable[[dict[str, Any]], None], expected: tuple[str, ...], tmp_path: Path
) -> None:
    content = copy.deepcopy(recipe_content("dinov2-small"))
    change(content)
    with pytest.raises(TwinbudError) as error:
        read_recipe(save_recipe(tmp_path / "small.yaml", content))
    for part in expected:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_an_axis_that_changes_the_test_images_has_no_baseline(tmp_path: Path) -> None:
    grid = {**recipe_content("–")["grid"], "develop": [True, False]}
    with pytest.raises(TwinbudError, match=r"small\.yaml: baseline: 'develop' is not one of pair, method"):
        small(tmp_path, grid=grid, baseline={"develop": False})


def test_a_setting_is_an_axis_or_swept_but_not_both(tmp_path: Path) -> None:
    grid = {**recipe_content("–")["grid"], "alpha": [0.5, 0.7]}
    with pytest.raises(TwinbudError, match=r"small\.yaml: sweeps: 'alpha' is an axis of the grid, too"):
        small(tmp_path, grid=grid, sweeps={"alpha": [0.1]})


@pytest.mark.parametrize(("title", "expected"), [("", "small"), (" Two\nlines\n", "Two lines"), (7, "7")])
def test_a_title_is_one_line(title: object, expected: str, tmp_path: Path) -> None:
    assert small(tmp_path, title=title).title == expected


@pytest.mark.parametrize("text", ["a: [", "- a\n- b\n", "a: &x 1\nb: *x\n"])
def test_a_file_that_is_not_a_recipe_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(text)
    with pytest.raises(TwinbudError, match=r"small\.yaml: (the recipe cannot be read|.* is not a mapping)"):
        read_recipe(tmp_path / "small.yaml")
    with pytest.raises(TwinbudError, match="No such file"):
        read_recipe(tmp_path / "none.yaml")


def test_an_empty_recipe_is_refused_for_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("# nothing yet\n")
    with pytest.raises(TwinbudError, match=r"small\.yaml: the recipe has no grid\. Write grid: or architectures:"):
        read_recipe(tmp_path / "small.yaml")


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("method", "--only: 'method' is not KEY=VALUE."),
        ("method=", "--only: 'method=' is not KEY=VALUE."),
        ("mehtod=dual", "Did you mean 'method'?"),
        ("method=dula", "Did you mean 'dual'?"),
        ("pair=big", "--only pair: "),
        ("sampling=a", "--only: sampling: 'a' is not a whole number. Give 0 or more, such as 0,1,2."),
        ("sampling=-1", "--only: sampling: '-1' is not a whole number. Give 0 or more, such as 0,1,2."),
        ("fraction=2", "--only: --fraction: '2' is not a number above 0 and of at most 1"),
        ("fraction=x", "--only: "),
    ],
)
def test_a_wrong_only_option_is_refused_in_one_line(option: str, expected: str, tmp_path: Path) -> None:
    recipe = small(tmp_path)
    with pytest.raises(TwinbudError) as error:
        plan_cells(recipe, parse_only([option], recipe))
    assert expected in str(error.value)
