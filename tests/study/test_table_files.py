"""The files of a recipe's tables: Markdown, CSV, JSON, page and figures."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from helpers.tables import ACCURACY, TABLE_1, accuracies, recipe_of, rows_of, sweep_tables, tables_of
from twinbud.core.errors import TwinbudError
from twinbud.study.figures import draw
from twinbud.study.statistics import spread
from twinbud.study.store import RunStore
from twinbud.study.table_text import cost_table
from twinbud.study.write_tables import collect, write_tables


def test_all_files_contain_the_numbers_of_the_table(tmp_path: Path) -> None:
    tables = tables_of(tmp_path, failed=[("timm", 2)])
    paths = write_tables(tmp_path / "small.yaml", tmp_path / "runs", tmp_path / "out")
    assert [path.name for path in paths] == [
        *("small.md", "small.csv", "small.json", "small.html"),
        *("small.1.confusion-1.svg", "small.1.time-and-memory.svg"),
    ]
    rows = rows_of(tables)
    read = list(csv.DictReader(io.StringIO((tmp_path / "out" / "small.csv").read_text())))
    assert [row["method"] for row in read] == list(rows)
    for row in read:
        measured = rows[row["method"]].measures["accuracy"]
        assert measured is not None
        assert float(row["accuracy"]) == measured.mean
    assert (read[2]["samplings"], read[2]["missing"], read[2]["failed"]) == ("4", "1", "1")
    content = json.loads((tmp_path / "out" / "small.json").read_text())
    found, _, third = content["sections"][0]["rows"]
    assert {int(s): run["metrics"]["accuracy"] for s, run in found["samplings"].items()} == accuracies(rows["dual"])
    assert third["samplings"]["2"] == {"missing": "step 3: the loss is nan."}
    text = (tmp_path / "out" / "small.md").read_text()
    assert "Intervals are over samplings of one split" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table[:5]}) == 1


def test_several_labels_an_image_have_no_confusion_matrix_to_draw(tmp_path: Path) -> None:
    tables_of(tmp_path)
    store = RunStore(tmp_path / "runs")
    for run_id in store.done_ids():
        record = store.read(run_id)
        store.write(run_id, {**record, "metrics": {**record["metrics"], "confusion_matrix": []}})
    paths = write_tables(tmp_path / "small.yaml", tmp_path / "runs")
    assert [path.name for path in paths if path.suffix == ".svg"] == ["small.1.time-and-memory.svg"]


def test_size_and_latency_are_shown_where_a_record_has_them(tmp_path: Path) -> None:
    (section,) = tables_of(tmp_path).sections
    assert "parameters" not in cost_table(section).heads
    first, *others = section.rows
    network = {"num_parameters": 5_504_452, "num_multiplications": 366_800_000, "latency_seconds": 0.01214}
    costs = {**first.costs, **{name: spread([value, value]) for name, value in network.items()}}
    table = cost_table(replace(section, rows=(replace(first, costs=costs), *others)))
    place = table.heads.index("parameters")
    assert table.heads[place : place + 3] == ("parameters", "multiplications", "one image on a CPU thread")
    assert table.rows[0][place : place + 3] == ("5.50 M", "0.367 G", "12.1 ms")
    assert table.rows[1][place : place + 3] == ("–", "–", "–")


def test_a_page_loads_nothing_and_contains_every_figure_once(tmp_path: Path) -> None:
    grid = {"data": ["brain-mri"], "pair": ["vit"], "method": list(ACCURACY), "fraction": [0.05, 0.1], "sampling": 5}
    tables_of(tmp_path, recipe_of(tmp_path, grid=grid, title="<b>&"))
    (tmp_path / "sweep").mkdir()
    sweep_tables(tmp_path / "sweep")
    for folder, titles in (
        (tmp_path, ("Accuracy against labels", "Confusion: 10\u00a0% · dual", "Time and memory")),
        (tmp_path / "sweep", ("Accuracy against alpha", "Accuracy against temperature")),
    ):
        write_tables(folder / "small.yaml", folder / "runs")
        page = (folder / "runs" / "tables" / "small.html").read_text()
        assert not re.search(r"""(src|href)\s*=\s*["'](?!#|data:)""", page.replace('xlink:href="#', 'href="#'))
        ids = re.findall(r'\bid="([^"]+)"', page)
        assert len(ids) == len(set(ids))
        assert page.count("<svg") == len(titles)
        for title in titles:
            assert f"<h3>{title}</h3>" in page
        assert "<b>&</" not in page
        assert len(list((folder / "runs" / "tables").glob("small.*.svg"))) == len(titles)


def test_a_figure_file_has_its_own_style_and_size(tmp_path: Path) -> None:
    tables_of(tmp_path)
    *_, path = write_tables(tmp_path / "small.yaml", tmp_path / "runs", tmp_path / "out")
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert int(root.attrib["width"]) > int(root.attrib["height"]) > 0
    style = root.find("{http://www.w3.org/2000/svg}style")
    assert style is not None
    assert "prefers-color-scheme:dark" in (style.text or "")
    assert "sans-serif" in (style.text or "")


def test_architectures_match_the_paper(tmp_path: Path) -> None:
    recipe = TABLE_1
    write_tables(recipe, tmp_path / "none", tmp_path / "out")
    content = json.loads((tmp_path / "out" / "table1.json").read_text())
    found = {(one["pair"], one["role"]): one for one in content["architectures"]}
    for pair, role, millions in (
        ("vit", "teacher", 21.67),
        ("vit", "student", 5.53),
        ("convnext", "teacher", 27.82),
        ("convnext", "student", 4.83),
    ):
        assert found[pair, role]["agrees"] is True
        assert found[pair, role]["num_parameters"] / 1e6 == pytest.approx(millions, abs=0.01)


def test_tables_without_a_finished_run_are_refused_in_one_line(tmp_path: Path) -> None:
    recipe, store = recipe_of(tmp_path), RunStore(tmp_path / "runs")
    with pytest.raises(TwinbudError, match="the runs folder does not exist"):
        collect(recipe, store)
    store.create()
    with pytest.raises(TwinbudError, match="no run of recipe 'small' was requested") as refused:
        collect(recipe, store)
    command = f"twinbud study {tmp_path}/small.yaml --data brain-mri=PATH --runs {tmp_path}/runs"
    assert refused.value.fix == f"Run: {command}"
    everything = [(method, sampling) for method in ACCURACY for sampling in range(5)]
    with pytest.raises(TwinbudError, match=r"none of 15 runs is finished\."):
        tables_of(tmp_path, missing=everything)


def test_a_folder_with_nothing_but_tables_can_become_a_runs_folder(tmp_path: Path) -> None:
    write_tables(TABLE_1, tmp_path / "runs")
    RunStore(tmp_path / "runs").create()


def test_lines_of_a_single_method_have_its_name(tmp_path: Path) -> None:
    grid = {"data": ["brain-mri"], "pair": ["vit"], "method": ["dual"], "fraction": [0.05, 0.1], "sampling": 1}
    (section,) = tables_of(tmp_path, recipe_of(tmp_path, grid=grid, baseline={})).sections
    (by_labels,) = (drawing for drawing in draw(section, "section-0") if drawing.name == "accuracy-by-labels")
    assert ">dual<" in by_labels.svg


def test_an_axis_keeps_its_column_beside_a_cost_of_its_name(tmp_path: Path) -> None:
    axes = {"fraction": [0.05], "sampling": 1, "epochs": [1, 2]}
    grid = {"data": ["brain-mri"], "pair": ["vit"], "method": ["dual"], **axes}
    recipe = recipe_of(tmp_path, grid=grid, baseline={})
    tables_of(tmp_path, recipe)
    store = RunStore(tmp_path / "runs")
    for done in store.done_ids():  # as min_steps may raise them
        record = store.read(done)
        store.write(done, {**record, "cost": {**record["cost"], "epochs": 40}})
    write_tables(tmp_path / "small.yaml", tmp_path / "runs")
    lines = csv.DictReader(io.StringIO((tmp_path / "runs" / "tables" / "small.csv").read_text()))
    assert [line["epochs"] for line in lines] == ["1", "2"]


def test_the_figures_of_a_recipe_with_a_longer_name_stay(tmp_path: Path) -> None:
    tables_of(tmp_path)
    folder = tmp_path / "out"
    folder.mkdir()
    kept = folder / "small.2.1.confusion-1.svg", folder / "small.1.notes.txt"
    old = folder / "small.9.confusion-1.svg"
    for path in (*kept, old):
        path.touch()
    write_tables(tmp_path / "small.yaml", tmp_path / "runs", folder)
    assert all(path.exists() for path in kept)
    assert not old.exists()


def test_another_process_may_delete_an_old_figure_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables_of(tmp_path)
    old, unlink = tmp_path / "out" / "small.9.confusion-1.svg", Path.unlink
    old.parent.mkdir()
    old.touch()

    def unlink_after_another(path: Path, *, missing_ok: bool = False) -> None:
        if path == old:
            unlink(path)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink_after_another)
    write_tables(tmp_path / "small.yaml", tmp_path / "runs", tmp_path / "out")
    assert not old.exists()
