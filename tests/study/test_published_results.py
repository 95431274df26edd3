"""The records in results/ are readable, so that their tables can be rebuilt."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinbud.study.export import collect
from twinbud.study.recipe import read_recipe
from twinbud.study.store import RunStore

ROOT = Path(__file__).parents[2]
PLANS = sorted((ROOT / "results").glob("*/plans/*.json"))


@pytest.mark.parametrize("plan", PLANS, ids=lambda path: path.stem)
def test_published_records_give_tables(plan: Path) -> None:
    (recipe,) = (ROOT / "recipes").glob(f"*/{plan.stem}.yaml")
    tables = collect(read_recipe(recipe), RunStore(plan.parents[1]))
    assert tables.notes == (), "no record is corrupt or of another training version"
    assert any(row.measures["accuracy"] for section in tables.sections for row in section.rows)
