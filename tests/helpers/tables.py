"""Tables of synthetic records of the paper's recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers.studies import recipe_content, save_recipe, write_records
from twinbud.study.recipe import Recipe, read_recipe
from twinbud.study.store import RunStore
from twinbud.study.tables import Row, Tables
from twinbud.study.write_tables import collect

BRAIN = {"num_images": 7020, "classes": ["glioma", "meningioma", "notumor", "pituitary"]}
TABLE_1 = Path(__file__).parents[2] / "recipes" / "paper" / "table1.yaml"
ACCURACY = {"dual": 0.75, "selection": 0.7, "timm": 0.6}
VIT = {
    "teacher": "vit_small_patch16_224.augreg_in21k",
    "student": "vit_tiny_patch16_224",
    "paper": "vit_small -> vit_tiny",
}
PAPER = {"table": "tables 2-4", "methods": {"dual": "Ours", "selection": "CM1", "timm": "CM2"}}


def recipe_of(folder: Path, **changes: Any) -> Recipe:
    """A recipe of the paper's ViT pair on brain-mri at 5 %, with three methods and five samplings."""
    content = recipe_content(
        "–",
        pairs={"vit": VIT},
        grid={"data": ["brain-mri"], "pair": ["vit"], "method": list(ACCURACY), "fraction": [0.05], "sampling": 5},
        settings={"threads": 1, "precision": "float32"},
        paper=PAPER,
    )
    return read_recipe(save_recipe(folder / "small.yaml", {**content, **changes}))


def tables_of(folder: Path, recipe: Recipe | None = None, **changes: Any) -> Tables:
    recipe = recipe or recipe_of(folder)
    runs = RunStore(folder / "runs")
    write_records(recipe, runs, **{"images": {"brain-mri": BRAIN}, "accuracy": ACCURACY, **changes})
    return collect(recipe, runs)


def rows_of(tables: Tables) -> dict[str, Row]:
    (section,) = tables.sections
    return {row.coordinates["method"]: row for row in section.rows}


def accuracies(row: Row) -> dict[int, float]:
    return {s: run.record["metrics"]["accuracy"] for s, run in row.runs.items() if run.record is not None}


def sweep_tables(folder: Path) -> Tables:
    grid = {"data": ["brain-mri"], "pair": ["vit"], "method": ["dual"], "fraction": [0.05, 0.1], "sampling": 5}
    sweeps = {"alpha": [0.2, 0.6], "temperature": [1, 4]}
    recipe = recipe_of(folder, grid=grid, sweeps=sweeps, baseline={}, paper={})
    return tables_of(folder, recipe)
