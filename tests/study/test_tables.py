"""Tables: the numbers of a row, its comparison with the baseline, and the notes on missing runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.studies import write_records
from helpers.tables import ACCURACY, BRAIN, VIT, accuracies, recipe_of, rows_of, sweep_tables, tables_of
from twinbud.core.errors import TwinbudError
from twinbud.study import run_id
from twinbud.study.protocol_notes import protocol_notes
from twinbud.study.recipe import Recipe, read_recipe
from twinbud.study.statistics import paired_difference, spread
from twinbud.study.store import RunStore
from twinbud.study.table_text import section_notes
from twinbud.study.write_tables import collect, write_tables


def test_a_row_has_the_mean_of_its_samplings_and_the_paired_difference_to_the_baseline(tmp_path: Path) -> None:
    rows = rows_of(tables_of(tmp_path))
    for method, row in rows.items():
        assert row.measures["accuracy"] == spread(list(accuracies(row).values()))
        expected = paired_difference(accuracies(row), accuracies(rows["selection"]))
        assert row.difference == (None if method == "selection" else expected)
        assert row.is_baseline == (method == "selection")
    assert rows["dual"].difference is not None
    assert rows["dual"].difference.verdict == "higher"
    assert rows["timm"].difference is not None
    assert rows["timm"].difference.verdict == "lower"


def test_runs_with_other_labelled_or_test_images_are_not_compared(tmp_path: Path) -> None:
    methods = {"other-split": {"method": "dual", "split_seed": 1}, "smaller": {"method": "dual", "alpha": 0.5}}
    names = ["selection", "other-split", "smaller"]
    grid = {"data": ["brain-mri"], "pair": ["vit"], "method": names, "fraction": [0.05], "sampling": 5}
    recipe = recipe_of(tmp_path, methods=methods, grid=grid)
    tables = tables_of(tmp_path, recipe, accuracy=dict.fromkeys(names, 0.7))
    rows = rows_of(tables)
    assert (rows["other-split"].difference, rows["other-split"].num_unpaired) == (None, 5)
    assert rows["smaller"].difference is not None
    assert (rows["smaller"].difference.count, rows["smaller"].num_unpaired) == (5, 0)
    note = "Not compared with selection, which has other labelled or test images: other-split."
    assert note in section_notes(tables.sections[0])


@pytest.mark.parametrize("value", ["none", None])
def test_a_baseline_is_found_however_its_value_is_spelled(value: str | None, tmp_path: Path) -> None:
    axes = {"fraction": [0.05], "sampling": 5, "clip_norm": ["none", 1]}
    grid = {"data": ["brain-mri"], "pair": ["vit"], "method": ["dual"], **axes}
    first, second = tables_of(tmp_path, recipe_of(tmp_path, grid=grid, baseline={"clip_norm": value})).sections[0].rows
    assert first.is_baseline
    assert second.difference is not None


def test_a_sweep_over_the_split_is_not_compared_with_its_default(tmp_path: Path) -> None:
    grid = {"data": ["brain-mri"], "pair": ["vit"], "method": ["dual"], "fraction": [0.05], "sampling": 5}
    recipe = recipe_of(tmp_path, grid=grid, sweeps={"split_seed": [0, 1]}, baseline={}, paper={})
    first, second = tables_of(tmp_path, recipe).sections[0].rows
    assert first.is_baseline
    assert (second.difference, second.num_unpaired) == (None, 5)


def test_confusion_is_counted_in_the_order_of_the_classes_of_the_image_set(tmp_path: Path) -> None:
    """Runs with another --classes have another order."""
    tables_of(tmp_path)
    recipe, store = recipe_of(tmp_path), RunStore(tmp_path / "runs")
    counts = [[9, 0, 0, 1], [0, 8, 2, 0], [3, 0, 7, 0], [0, 4, 0, 6]]
    for done in store.done_ids():
        record = store.read(done)
        store.write(done, {**record, "metrics": {**record["metrics"], "confusion_matrix": counts}})
    expected = tuple(tuple(5 * count for count in row) for row in counts)
    assert [row.confusion for row in collect(recipe, store).sections[0].rows] == [expected] * 3
    turned = [row[::-1] for row in counts[::-1]]
    for done in store.done_ids():
        record = store.read(done)
        metrics = {**record["metrics"], "confusion_matrix": turned}
        store.write(done, {**record, "classes": record["classes"][::-1], "metrics": metrics})
    assert [row.confusion for row in collect(recipe, store).sections[0].rows] == [expected] * 3


def test_the_paper_column_is_unmarked_if_the_runs_match_those_of_the_paper(tmp_path: Path) -> None:
    (section,) = tables_of(tmp_path).sections
    assert section.paper_head == "paper"
    assert [row.paper for row in section.rows] == [(0.774, 0.019), (0.766, 0.014), (0.741, 0.010)]


@pytest.mark.parametrize(
    ("changes", "head"),
    [
        ({"profile": "quick"}, "paper (different: image size, epochs)"),
        ({"images": {"brain-mri": {**BRAIN, "classes": ["no tumor", "tumor"]}}}, "paper (different: classes)"),
        ({"images": {"brain-mri": {**BRAIN, "num_images": 800}}}, "paper (different: images)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_paper_column_names_the_differences(changes: dict[str, Any], head: str, tmp_path: Path) -> None:
    (section,) = tables_of(tmp_path, **changes).sections
    assert section.paper_head == head
    write_tables(tmp_path / "small.yaml", tmp_path / "runs")
    assert f"| {head} |" in (tmp_path / "runs" / "tables" / "small.md").read_text()


def test_another_pair_is_a_difference_and_a_pair_without_counterpart_has_no_column(tmp_path: Path) -> None:
    other = {"vit": {"teacher": "dinov2-small", "student": "half", "paper": VIT["paper"]}}
    (section,) = tables_of(tmp_path, recipe_of(tmp_path, pairs=other)).sections
    assert section.paper_head == "paper (different: pair)"
    (tmp_path / "none").mkdir()
    alone = {"vit": {"teacher": "dinov2-small", "student": "half"}}
    (section,) = tables_of(tmp_path / "none", recipe_of(tmp_path / "none", pairs=alone)).sections
    assert section.paper_head is None


def test_missing_and_failed_runs_are_counted_with_their_reasons(tmp_path: Path) -> None:
    tables = tables_of(tmp_path, missing=[("dual", 3)], failed=[("dual", 4), ("selection", 0)])
    rows = rows_of(tables)
    assert rows["dual"].samplings == "3 of 5, 1 failed"
    assert rows["timm"].samplings == "5"
    assert rows["dual"].difference is not None
    assert (rows["dual"].difference.count, rows["dual"].difference.verdict) == (2, None)
    assert tables.failures == {"step 3: the loss is nan.": 2}
    write_tables(tmp_path / "small.yaml", tmp_path / "runs")
    text = (tmp_path / "runs" / "tables" / "small.md").read_text()
    assert "- Failed (2): step 3: the loss is nan." in text
    assert ", 2 pairs | – | 3 of 5, 1 failed |" in text


def test_fewer_than_five_samplings_have_no_verdict_and_one_has_no_deviation(tmp_path: Path) -> None:
    for number, expected in ((4, r"\| \+0\.\d{3} \(.+ to .+\) \| – \| 4 \|"), (1, r"\| 0\.\d{3} \| .0\.\d{3} \| – \|")):
        folder = tmp_path / str(number)
        folder.mkdir()
        recipe = recipe_of(folder)
        grid = {axis: list(values) for axis, values in recipe.grid.items()} | {"sampling": number}
        tables = tables_of(folder, recipe_of(folder, grid=grid))
        assert all(row.difference is None or row.difference.verdict is None for row in rows_of(tables).values())
        write_tables(folder / "small.yaml", folder / "runs")
        assert re.search(expected, (folder / "runs" / "tables" / "small.md").read_text())


def test_a_sweep_is_compared_with_the_default_run_that_all_sweeps_share(tmp_path: Path) -> None:
    tables = sweep_tables(tmp_path)
    assert [section.coordinates["sweep"] for section in tables.sections] == ["alpha", "temperature"]
    defaults = []
    for section in tables.sections:
        for row in section.rows:
            assert row.is_baseline == (row.coordinates["value"] in (0.6, 4))
            assert (row.difference is None) == row.is_baseline
        defaults.append([accuracies(row) for row in section.rows if row.is_baseline])
    assert defaults[0] == defaults[1], "one run is the default of both"
    assert len(list((tmp_path / "runs" / "records").iterdir())) == 3 * 2 * 5


def test_a_pair_can_be_the_baseline(tmp_path: Path) -> None:
    grid = {"data": ["brain-mri"], "pair": ["vit", "big"], "method": ["dual"], "fraction": [0.05], "sampling": 5}
    pairs = {"vit": VIT, "big": {**VIT, "teacher": "vit_base_patch16_224.augreg_in21k"}}
    recipe = recipe_of(tmp_path, grid=grid, pairs=pairs, baseline={"pair": "vit"})
    (section,) = tables_of(tmp_path, recipe).sections
    assert [(row.coordinates["pair"], row.is_baseline) for row in section.rows] == [("vit", True), ("big", False)]
    assert section.baseline == "vit"


def test_tables_of_a_changed_recipe_are_refused(tmp_path: Path) -> None:
    tables_of(tmp_path)
    with pytest.raises(TwinbudError, match=r"small\.yaml: the recipe differs from the one that the runs"):
        collect(
            recipe_of(tmp_path, settings={"threads": 1, "precision": "float32", "epochs": 3}),
            RunStore(tmp_path / "runs"),
        )
    path = tmp_path / "small.yaml"
    recipe_of(tmp_path)
    path.write_text(f"# only a comment\n{path.read_text()}")
    assert collect(read_recipe(path), RunStore(tmp_path / "runs")).sections


def test_a_corrupt_record_counts_as_missing_and_one_with_other_images_is_refused(tmp_path: Path) -> None:
    tables_of(tmp_path)
    recipe, folder = recipe_of(tmp_path), RunStore(tmp_path / "runs")
    first, *_ = sorted((folder.path / "records").iterdir())
    text = first.read_text()
    first.write_text(text[:-9])
    tables = collect(recipe, folder)
    assert sum(row.num_done for row in rows_of(tables).values()) == 14
    assert tables.notes == (
        f"{first}: the record cannot be read. The run counts as missing; 'twinbud study' executes it again.",
    )  # fmt: skip
    first.write_text(text)
    marker = folder.path / "study.json"
    marker.write_text(marker.read_text().replace("fingerprint of brain-mri", "fingerprint of others"))
    with pytest.raises(TwinbudError, match="the record has other images than the image set 'brain-mri' of its folder"):
        collect(recipe, folder)


def test_runs_of_another_training_version_count_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a paired difference would compare two versions of the training code."""
    tables_of(tmp_path)
    monkeypatch.setattr("twinbud.study.write_tables.TRAINING_VERSION", run_id.TRAINING_VERSION + 1)
    with pytest.raises(TwinbudError, match=r"none of 15 runs is finished\."):
        collect(recipe_of(tmp_path), RunStore(tmp_path / "runs"))


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_two_networks_of_one_name_are_not_compared(role: str, tmp_path: Path) -> None:
    tables_of(tmp_path)
    store = RunStore(tmp_path / "runs")
    plan = store.read_plan("small")
    assert plan is not None
    record = store.read(plan.runs[0].run_id)
    (record["facts"] if role == "teacher" else record["facts"]["settings"])[role] = "sha256:others"
    name = run_id.make_run_id(record["facts"])
    store.write(name, record)
    path = store.path / "plans" / "small.json"
    path.write_text(path.read_text().replace(plan.runs[0].run_id, name))
    with pytest.raises(TwinbudError, match=rf"the runs of .*pair 'vit' have two different {role}s: the {role}'s file"):
        collect(recipe_of(tmp_path), store)


def test_records_of_an_unknown_image_set_are_refused_in_one_line(tmp_path: Path) -> None:
    """As in a runs folder whose study.json was lost, and made again by another recipe."""
    tables_of(tmp_path)
    store = RunStore(tmp_path / "runs")
    (store.path / "study.json").unlink()
    store.create()
    with pytest.raises(TwinbudError, match=r"runs: study\.json does not know the image set 'brain-mri'"):
        collect(recipe_of(tmp_path), store)
    (store.path / "study.json").write_text('{"format_version": 2, "image_sets": {"brain-mri": 3}}')
    with pytest.raises(TwinbudError, match=r"is not a runs folder: it has no readable study\.json"):
        collect(recipe_of(tmp_path), store)


def test_a_plan_with_a_pair_that_the_recipe_lacks_is_refused_in_one_line(tmp_path: Path) -> None:
    tables_of(tmp_path)
    path = tmp_path / "runs" / "plans" / "small.json"
    path.write_text(path.read_text().replace('"pair":"vit"', '"pair":"swin"', 1))
    with pytest.raises(TwinbudError, match=r"small\.json: the plan has runs of pair 'swin', which the recipe does not"):
        collect(recipe_of(tmp_path), RunStore(tmp_path / "runs"))


@pytest.mark.parametrize("damage", [{"num_images": "many"}, {"classes": 3}, {"classes": [3]}], ids=str)
def test_an_image_set_of_another_type_is_refused_in_one_line(damage: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "runs" / "study.json"
    tables_of(tmp_path)
    path.write_text(
        json.dumps({"format_version": 2, "image_sets": {"brain-mri": {"fingerprint": "x", **BRAIN, **damage}}})
    )
    with pytest.raises(TwinbudError, match=r"is not a runs folder: it has no readable study\.json"):
        collect(recipe_of(tmp_path), RunStore(tmp_path / "runs"))


def test_the_paper_column_is_not_compared_before_a_run_is_finished(tmp_path: Path) -> None:
    sets, runs = ["brain-mri", "lung-ct"], RunStore(tmp_path / "runs")
    grid = {"data": sets, "pair": ["vit"], "method": list(ACCURACY), "fraction": [0.05], "sampling": 5}
    recipe = recipe_of(tmp_path, grid=grid)
    images = {"brain-mri": BRAIN, "lung-ct": {"num_images": 4597, "classes": ["a", "b"]}}
    write_records(recipe, runs, images=images, accuracy=ACCURACY)
    for path in (runs.path / "records").iterdir():
        if json.loads(path.read_text())["record"]["classes"] == ["a", "b"]:
            path.unlink()
    heads = {section.coordinates["data"]: section.paper_head for section in collect(recipe, runs).sections}
    assert heads["lung-ct"] == "paper (no run yet)"


def test_notes_name_runs_trained_or_tested_on_other_images(tmp_path: Path) -> None:
    (plain,) = tables_of(tmp_path / "plain", recipe_in(tmp_path / "plain")).sections
    assert plain.protocol_notes == ()
    methods = {"more": {"method": "selection", "recover": "unlabelled"}}
    grid = {"data": ["brain-mri"], "pair": ["vit"], "method": ["selection", "more"], "fraction": [0.05], "sampling": 2}
    settings = {"threads": 1, "precision": "float32", "develop": True}
    recipe = recipe_in(tmp_path / "other", methods=methods, grid=grid, settings=settings, paper=None)
    (section,) = tables_of(tmp_path / "other", recipe, accuracy={"selection": 0.7, "more": 0.8}).sections
    assert section.protocol_notes == (
        "All runs: tested on one fifth of the training part (develop: true); the test part was not used",
        "more: recovered from the teacher on the whole training part without its labels (recover: unlabelled), which "
        "the paper does not do",
    )
    short = []
    for run in section.rows[1].runs.values():
        assert run.record is not None
        cost = {**run.record["cost"], "recover_num_views": 30, "recover_num_views_asked": 120}
        short.append(replace(run, record={**run.record, "cost": cost}))
    *_, last = protocol_notes(short)
    assert last == "more: least squares used only 25% of the requested views (limit: recover_memory)"
    write_tables(tmp_path / "other" / "small.yaml", tmp_path / "other" / "runs")
    assert (
        "more: recovered from the teacher on the whole"
        in (tmp_path / "other" / "runs" / "tables" / "small.md").read_text()
    )


def recipe_in(folder: Path, **changes: Any) -> Recipe:
    folder.mkdir()
    return recipe_of(folder, **changes)
