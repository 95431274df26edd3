"""The records in results/ are readable, so that their tables can be rebuilt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twinbud.models.families.vit import ViTFamily
from twinbud.study.grid import checked_config
from twinbud.study.recipe import read_recipe
from twinbud.study.run_id import make_run_id, run_facts
from twinbud.study.store import RunStore
from twinbud.study.write_tables import collect

ROOT = Path(__file__).parents[2]
PLANS = sorted((ROOT / "results").glob("*/plans/*.json"))


def test_published_records_keep_their_run_id() -> None:
    """A setting that is added must not make ``twinbud study`` repeat the runs that exist."""
    files = sorted((ROOT / "results").glob("*/records/*.json"))
    assert files
    for file in files:
        record = json.loads(file.read_text())["record"]
        facts = record["facts"]
        resolved = {name: facts["settings"][name] for name in ("temperature", "drop_path")}  # so any family will do
        # "ignore" is what all runs had before there was such a setting, and no fact of a run
        earlier = {"near_duplicates": facts["settings"].get("near_duplicates", "ignore")}
        if "recover_metric" not in facts["settings"]:
            earlier["recover_metric"] = "variance"
        config = checked_config(earlier | record["settings"] | resolved | {"data": "phantom"})
        again = run_facts(config, images=facts["images"], teacher=facts["teacher"], family=ViTFamily())
        assert again == facts
        assert make_run_id(again) == file.stem


@pytest.mark.parametrize("plan", PLANS, ids=lambda path: path.stem)
def test_published_records_give_tables(plan: Path) -> None:
    (recipe,) = (ROOT / "recipes").glob(f"*/{plan.stem}.yaml")
    tables = collect(read_recipe(recipe), RunStore(plan.parents[1]))
    assert tables.notes == (), "no record is corrupt or of another training version"
    assert any(row.measures["accuracy"] for section in tables.sections for row in section.rows)
