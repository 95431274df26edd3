"""The tables of a recipe as files: Markdown to read, CSV to compute with, JSON with everything, one HTML page."""

from __future__ import annotations

import csv
import glob
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from twinbud.core.errors import TwinbudError, explained_writes
from twinbud.core.files import write_json, write_text
from twinbud.report.figures import standing_alone
from twinbud.study.architectures import list_architectures
from twinbud.study.figures import Drawing, draw
from twinbud.study.markdown import architectures_markdown, tables_markdown
from twinbud.study.page import architectures_page, tables_page
from twinbud.study.recipe import Recipe, read_recipe
from twinbud.study.requests import RequestedRun
from twinbud.study.run_id import TRAINING_VERSION
from twinbud.study.store import TABLES, CorruptRecordError, RunStore
from twinbud.study.tables import Row, Section, Tables, make_tables


def write_tables(recipe_path: Path, runs: Path, output: Path | None = None) -> list[Path]:
    """Write ``NAME.md``, ``NAME.csv``, ``NAME.json`` and ``NAME.html``, each whole, and each figure as an SVG file.

    The figures of the first section are ``NAME.1.FIGURE.svg``.

    Args:
        recipe_path: The recipe given to ``twinbud study``.
        runs: The runs folder; a recipe of architectures needs none.
        output: Where to; by default ``tables`` in the runs folder.

    Raises:
        TwinbudError: A recipe or a runs folder that cannot be used, or no finished run of the recipe.
    """
    recipe = read_recipe(recipe_path)
    folder = output or runs / TABLES
    figures: list[list[Drawing]] = []
    if recipe.architectures:
        architectures = list_architectures(recipe)
        markdown, page = architectures_markdown(recipe, architectures), architectures_page(recipe, architectures)
        content: Any = {"title": recipe.title, "architectures": [asdict(one) for one in architectures]}
        rows = [asdict(one) for one in architectures]
    else:
        tables = collect(recipe, RunStore(runs))
        figures = [draw(section, f"section-{place}") for place, section in enumerate(tables.sections)]
        markdown, page = tables_markdown(tables), tables_page(tables, figures)
        content, rows = tables_json(tables), [row for section in tables.sections for row in _flat(recipe, section)]
    paths = {kind: folder / f"{recipe.name}.{kind}" for kind in ("md", "csv", "json", "html")}
    drawings = {
        folder / f"{recipe.name}.{place}.{drawing.name}.svg": drawing.svg
        for place, drawn in enumerate(figures, start=1)
        for drawing in drawn
    }
    with explained_writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(paths["md"], markdown)
    write_text(paths["csv"], _csv(rows))
    write_json(paths["json"], content)
    write_text(paths["html"], page)
    for path in folder.glob(f"{glob.escape(recipe.name)}.[0-9]*.*.svg"):
        if path not in drawings:  # of a recipe that was another one
            path.unlink()
    for path, svg in drawings.items():
        write_text(path, standing_alone(svg))
    return [*paths.values(), *drawings]


def collect(recipe: Recipe, folder: RunStore) -> Tables:
    """Read what was asked for under a recipe, and what became of it.

    Raises:
        TwinbudError: Not a runs folder, a recipe that has changed since, a record of another run or of other
            images, or nothing finished.
    """
    folder.require()
    plan, command = folder.read_plan(recipe.name), f"Run: twinbud study {recipe.name}.yaml --runs {folder.path}"
    if plan is None:
        raise TwinbudError("a finished run", got=f"none of {recipe.name}", where=str(folder.path), fix=command)
    if plan["digest"] != recipe.digest:
        raise TwinbudError(
            "the recipe that the runs were asked for with",
            got="another one of the same name, or a changed one",
            where=recipe.name,
            fix=f"{command}; what is done is not done again",
        )
    images, notes = folder.images(), []
    requested = []
    for run in plan["runs"]:
        run_id, record, failure = run["identity"], None, None
        try:
            record = _record_on(folder, run_id, images[run["coordinates"]["data"]])
        except CorruptRecordError as error:
            notes.append(f"{error.where}: {error.got}, counted as missing; the next study makes it anew")
        if record is not None and record["facts"]["training_version"] != TRAINING_VERSION:
            notes.append("runs of an earlier version of the training are counted as missing; the study makes them anew")
            record = None
        failure = folder.failure(run_id) if record is None else None
        requested.append(
            RequestedRun(
                coordinates=run["coordinates"],
                profile=run["profile"],
                is_default=run["is_default"],
                record=record,
                reason=failure[1] if failure else None,
            )
        )
    _require_one_teacher_a_pair(requested, folder)
    if not any(run.record for run in requested):
        got = f"none of {len(requested)}"
        raise TwinbudError("a finished run", got=got, where=str(folder.path), fix=command)
    return make_tables(recipe, requested, images, dict.fromkeys(notes))


def _require_one_teacher_a_pair(requested: Sequence[RequestedRun], folder: RunStore) -> None:
    """Refuse to compare runs from two teachers of one name.

    Raises:
        TwinbudError: The weights of a pair's teacher have changed between its runs.
    """
    teachers: dict[Any, str] = {}
    for run in requested:
        if run.record is None:
            continue
        pair, teacher = run.coordinates["pair"], run.record["facts"]["teacher"]
        if teachers.setdefault(pair, teacher) != teacher:
            raise TwinbudError(
                "one teacher for all runs of a pair",
                got=f"two for {pair} (its file has changed)",
                where=str(folder.path),
                fix="Run the whole study again, or in another --runs",
            )


def _record_on(folder: RunStore, run_id: str, images: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if not folder.is_done(run_id):
        return None
    record = folder.read(run_id)
    if record["facts"]["images"] != images["fingerprint"]:
        raise TwinbudError(
            "a record made with the images that its folder names",
            got="one made with others",
            where=str(folder.path / "records" / f"{run_id}.json"),
            fix="Move it away, and run the study again",
        )
    return record


def tables_json(tables: Tables) -> dict[str, Any]:
    """Everything, each sampling's metrics and costs too."""
    recipe = tables.recipe
    return {
        "title": recipe.title,
        "recipe": recipe.name,
        "baseline": dict(recipe.baseline),
        "failures": dict(tables.failures),
        "notes": list(tables.notes),
        "sections": [
            {
                "coordinates": dict(section.coordinates),
                "profile": section.profile,
                "classes": list(section.classes),
                "num_images": section.num_images,
                "differs_from_the_paper_in": section.differs,
                "machines": list(section.machines),
                "rows": [_row_json(row) for row in section.rows],
            }
            for section in tables.sections
        ],
    }


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "coordinates": dict(row.coordinates),
        "measures": {name: asdict(value) if value else None for name, value in row.measures.items()},
        "costs": {name: asdict(value) if value else None for name, value in row.costs.items()},
        "difference": asdict(row.difference) if row.difference else None,
        "is_baseline": row.is_baseline,
        "paper": row.paper,
        "paper_cost": row.paper_cost,
        "confusion_matrix": row.confusion,
        "samplings": {
            str(sampling): {"metrics": run.record["metrics"], "cost": run.record["cost"]}
            if run.record is not None
            else {"missing": run.reason or "not done yet"}
            for sampling, run in row.runs.items()
        },
    }


def _flat(recipe: Recipe, section: Section) -> list[dict[str, Any]]:
    """One row of the CSV for each row of a table; a column that has no value is empty."""
    rows = []
    for row in section.rows:
        flat: dict[str, Any] = {"recipe": recipe.name, "profile": section.profile}
        flat |= {**section.coordinates, **row.coordinates}
        flat |= {"samplings": row.num_done, "missing": len(row.runs) - row.num_done, "failed": row.num_failed}
        for name, value in [*row.measures.items(), *row.costs.items()]:
            flat[name], flat[f"{name}_deviation"] = (value.mean, value.deviation) if value else (None, None)
        difference = row.difference
        low, high = difference.interval if difference and difference.interval else (None, None)
        flat |= {
            "baseline": section.baseline,
            "difference": difference.mean if difference else None,
            "difference_low": low,
            "difference_high": high,
            "pairs": difference.count if difference else None,
            "verdict": difference.verdict if difference else None,
        }
        flat["paper"], flat["paper_deviation"] = row.paper or (None, None)
        flat["paper_differs"] = None if section.differs is None else "; ".join(section.differs)
        rows.append(flat)
    return rows


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO(newline="")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if row.get(name) is None else row[name] for name in columns} for row in rows)
    return text.getvalue()
