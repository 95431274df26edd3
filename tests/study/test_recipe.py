"""Recipes: what they ask for, and what is wrong with one that cannot be used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.studies import recipe_content, save_recipe
from twinbud.config.loading import read_setting
from twinbud.config.schema import PROFILES
from twinbud.core.errors import TwinbudError
from twinbud.study.grid import plan_cells, read_choices
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
def test_every_recipe_of_the_paper_is_one_and_asks_for_as_many_runs_as_it_should(path: Path) -> None:
    recipe = read_recipe(path)
    if path.stem == "table1":
        assert recipe.architectures == ("vit", "convnext", "dinov2")
        return
    assert len(plan_cells(recipe)) == NUM_RUNS[path.stem]
    assert recipe.sweeps or recipe.baseline, "differences are to something"


@pytest.mark.parametrize("path", BEYOND, ids=lambda path: path.stem)
def test_every_recipe_beyond_the_paper_is_one_in_all_of_its_methods(path: Path) -> None:
    recipe = read_recipe(path)
    cells = plan_cells(recipe, {"method": tuple(recipe.known_methods)})
    assert {cell.coordinates["method"] for cell in cells} >= set(recipe.methods)
    assert recipe.baseline
    assert f"recipes/beyond/{path.name}" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", BEYOND, ids=lambda path: path.stem)
def test_best_is_the_profile_of_that_name(path: Path) -> None:
    recipe = read_recipe(path)
    ours = {name: value for name, value in PROFILES["best"].items() if PROFILES["quick"].get(name) != value}
    assert recipe.profile == "quick"
    assert {name: read_setting(name, value) for name, value in recipe.methods["best"].items()} == ours


@pytest.mark.parametrize("path", [*PAPER, *BEYOND], ids=lambda path: path.stem)
def test_no_recipe_has_a_random_teacher(path: Path) -> None:
    for pair in read_recipe(path).pairs.values():
        assert pair.teacher == "dinov2-small" or "." in pair.teacher, "a tag names the weights"
        assert "local-dir:" not in pair.teacher


def test_a_sampling_is_finished_for_all_methods_before_the_next_begins(tmp_path: Path) -> None:
    cells = plan_cells(small(tmp_path))
    order = [(cell.coordinates["sampling"], cell.coordinates["method"]) for cell in cells]
    assert order == [(0, "dual"), (0, "selection"), (1, "dual"), (1, "selection")]


def test_settings_come_from_the_profile_the_recipe_the_method_and_the_axes_in_this_order(tmp_path: Path) -> None:
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


def test_values_are_read_as_their_settings_whatever_yaml_takes_them_for(tmp_path: Path) -> None:
    """YAML reads 1e-2 as text; two spellings of one number are one value."""
    grid = {**recipe_content("–")["grid"], "fraction": ["1e-2", 0.01, 1], "sampling": 1, "method": ["dual"]}
    cells = plan_cells(small(tmp_path, grid=grid, baseline=None))
    assert [cell.settings["fraction"] for cell in cells] == [0.01, 1.0]
    swept = plan_cells(small(tmp_path, sweeps={"temperature": ["2", "auto"]}))
    assert {cell.settings["temperature"] for cell in swept} == {2.0, "auto"}
    grid["fraction"] = ["half"]
    with pytest.raises(TwinbudError, match=r"small\.yaml: grid\.fraction: --fraction: expected a number, got 'half'"):
        plan_cells(small(tmp_path, grid=grid, baseline=None))
    with pytest.raises(TwinbudError, match=r"small\.yaml: sweeps\.alpha: --alpha: expected a number, got 'x'"):
        plan_cells(small(tmp_path, sweeps={"alpha": ["x"]}))


def test_a_choice_may_be_a_word_that_yaml_takes_for_a_truth(tmp_path: Path) -> None:
    recipe = small(tmp_path, sweeps={"compile": ["auto", "on"], "swap_roles": [True]})
    assert read_choices(["compile=off", "swap_roles=false"], recipe) == {"compile": ("off",), "swap_roles": (False,)}


def test_a_sweep_varies_one_setting_at_a_time(tmp_path: Path) -> None:
    sweeps = {"alpha": [0.2, 0.6], "beta": [0.5]}
    grid = recipe_content("x")["grid"] | {"method": ["dual"], "sampling": 1}
    cells = plan_cells(small(tmp_path, grid=grid, sweeps=sweeps, baseline=None))
    steps = [(c.coordinates["sweep"], c.coordinates["value"], c.settings.get("alpha")) for c in cells]
    assert steps == [("alpha", 0.2, 0.2), ("alpha", 0.6, 0.6), ("beta", 0.5, None)]


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (["sampling=0"], 2),
        (["sampling=0,1,2,3,4"], 10),
        (["method=timm", "method=dual"], 4),
        (["fraction=0.5", "method=dual"], 2),
        (["data=elsewhere"], 4),
    ],
)
def test_a_choice_narrows_the_grid_or_takes_what_the_recipe_defines(
    words: list[str], number: int, tmp_path: Path
) -> None:
    recipe = small(tmp_path)
    assert len(plan_cells(recipe, read_choices(words, recipe))) == number


def test_a_choice_narrows_the_sweeps(tmp_path: Path) -> None:
    recipe = small(tmp_path, sweeps={"alpha": [0.2, 0.6], "beta": [0.5, 0.9]}, baseline=None)
    assert len(plan_cells(recipe, read_choices(["sweep=alpha"], recipe))) == 8
    assert len(plan_cells(recipe, read_choices(["alpha=0.2", "sampling=0"], recipe))) == 6


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
    ("change", "said"),
    [
        (put(1, "grdi"), ("small.yaml: expected one of title", "got 'grdi'. Did you mean 'grid'?")),
        (put("dula", "grid", "method"), ("grid.method: expected one of dual", "got 'dula'. Did you mean 'dual'?")),
        (put(["huge"], "grid", "pair"), ("grid.pair: expected one of tiny, got 'huge'.",)),
        (put(["x"], "grid", "colour"), ("small.yaml: grid: expected one of data, pair", "got 'colour'")),
        (put([0], "grid", "seed"), ("small.yaml: grid: expected one of", "got 'seed'")),
        (put([], "grid", "method"), ("grid.method: expected a list of values, got none.",)),
        (put(0, "grid", "sampling"), ("small.yaml: grid: expected values of data", "got none of sampling.")),
        (drop("grid", "fraction"), ("small.yaml: grid: expected values of data", "got none of fraction.")),
        (drop("grid"), ("small.yaml: expected a grid of runs, got an empty one.",)),
        (put({}, "grid"), ("small.yaml: expected a grid of runs, got an empty one.",)),
        (put({"epoch": 3}, "settings"), ("small.yaml: settings: expected one of", "Did you mean 'epochs'?")),
        (drop("settings", "threads"), ("settings.threads: expected a fixed value", "got none.")),
        (put("auto", "settings", "precision"), ("settings.precision: expected a fixed value", "got auto.")),
        (put({"x": {"rul": "random"}}, "methods"), ("methods.x: expected one of", "Did you mean 'rule'?")),
        (put({"method": "timm"}, "baseline"), ("baseline.method: expected one of dual, selection, got 'timm'.",)),
        (put({"fraction": 1.0}, "baseline"), ("small.yaml: baseline: expected one of pair, method", "got 'fraction'")),
        (put({"data": "shades"}, "baseline"), ("small.yaml: baseline: expected one of pair, method", "got 'data'")),
        (put(["subject"], "grid", "patient_column"), ("small.yaml: grid: expected one of", "got 'patient_column'")),
        (put({"x": {"skip_broken": True}}, "methods"), ("methods.x: expected one of", "got 'skip_broken'")),
        (put({"student": "half"}, "pairs", "tiny"), ("pairs.tiny: expected a teacher, got none.",)),
        (put("vit", "pairs", "tiny", "paper"), ("pairs.tiny.paper: expected one of vit_small -> vit_tiny",)),
        (put({"table": "table 9"}, "paper"), ("paper.table: expected one of tables 2-4", "got 'table 9'")),
        (put("fast", "profile"), ("small.yaml: profile: expected one of paper, quick, best, got 'fast'.",)),
        (put([3], "pairs"), ("small.yaml: pairs: expected NAME: VALUE, got something else.",)),
        (put({"alhpa": [1]}, "sweeps"), ("small.yaml: sweeps: expected one of", "Did you mean 'alpha'?")),
        (put(["tiny", "big"], "architectures"), ("architectures: expected one of tiny, got 'big'.",)),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, tuple) else "",
)
def test_a_recipe_that_is_wrong_is_told_in_one_line(
    change: Callable[[dict[str, Any]], None], said: tuple[str, ...], tmp_path: Path
) -> None:
    content = copy.deepcopy(recipe_content("dinov2-small"))
    change(content)
    with pytest.raises(TwinbudError) as error:
        read_recipe(save_recipe(tmp_path / "small.yaml", content))
    for part in said:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["a: [", "- a\n- b\n", "a: &x 1\nb: *x\n", ""])
def test_a_file_that_is_no_recipe_is_told_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(text)
    with pytest.raises(TwinbudError, match=r"small\.yaml: expected"):
        read_recipe(tmp_path / "small.yaml")
    with pytest.raises(TwinbudError, match="No such file"):
        read_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("method", "--only: expected KEY=VALUE, got 'method'."),
        ("method=", "--only: expected KEY=VALUE"),
        ("mehtod=dual", "Did you mean 'method'?"),
        ("method=dula", "--only method: expected one of dual"),
        ("pair=big", "--only pair: expected one of tiny, got 'big'."),
        ("sampling=a", "--only: sampling: expected a sampling of at least 0, got 'a'."),
        ("sampling=-1", "expected a sampling of at least 0, got '-1'."),
        ("fraction=2", "--fraction: expected a share in (0, 1], got 2"),
        ("fraction=x", "--fraction: expected a number, got 'x'."),
    ],
)
def test_a_choice_that_is_wrong_is_told_in_one_line(word: str, said: str, tmp_path: Path) -> None:
    recipe = small(tmp_path)
    with pytest.raises(TwinbudError) as error:
        plan_cells(recipe, read_choices([word], recipe))
    assert said in str(error.value)
