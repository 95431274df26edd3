"""Write the tables of a recipe: Markdown, CSV, JSON with every run, one HTML page, and the figures as SVG."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from twinbud.config.data_spec import parse_data
from twinbud.core.csv_files import format_records
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
from twinbud.study.store import MARKER, TABLES, CorruptRecordError, RunStore
from twinbud.study.tables import Row, Section, Tables, make_tables


def write_tables(recipe_path: Path, runs: Path, output: Path | None = None) -> list[Path]:
    """Write ``NAME.md``, ``NAME.csv``, ``NAME.json``, ``NAME.html``, and an SVG file for each figure.

    The figures of the first section are ``NAME.1.FIGURE.svg``.

    Args:
        recipe_path: The recipe given to ``twinbud study``.
        runs: The runs folder; not used for a recipe of architectures.
        output: The output folder; by default ``tables`` in the runs folder.

    Returns:
        The paths of the files.

    Raises:
        TwinbudError: The recipe or the runs folder cannot be used, or no run of the recipe is finished.
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
    write_text(paths["csv"], format_records(rows))
    write_json(paths["json"], content)
    write_text(paths["html"], page)
    own = re.compile(rf"{re.escape(recipe.name)}\.[0-9]+\.[^.]+\.svg")  # not those of a recipe NAME.2.yaml
    for path in folder.iterdir():
        if own.fullmatch(path.name) and path not in drawings:  # left from an earlier version of the recipe
            path.unlink(missing_ok=True)  # another process may write the same tables
    for path, svg in drawings.items():
        write_text(path, standing_alone(svg))
    return [*paths.values(), *drawings]


def collect(recipe: Recipe, store: RunStore) -> Tables:
    """Read the runs requested with a recipe, and make its tables.

    Raises:
        TwinbudError: The folder is not a runs folder, the recipe has changed, a record has other images or another
            teacher, or no run is finished.
    """
    store.require()
    data = "".join(f"--data {name}=PATH " for name in recipe.grid["data"] if parse_data(name).is_path)
    command = f"Run: twinbud study {shlex.quote(recipe.path)} {data}--runs {shlex.quote(str(store.path))}"
    plan = store.read_plan(recipe.name)
    if plan is None:
        raise TwinbudError(f"no run of recipe '{recipe.name}' was requested", where=str(store.path), fix=command)
    if plan.digest != recipe.digest:
        problem = "the recipe differs from the one that the runs were requested with"
        raise TwinbudError(problem, where=recipe.path, fix=f"{command}; finished runs are not repeated")
    if unknown := [run.coordinates["pair"] for run in plan.runs if run.coordinates["pair"] not in recipe.pairs]:
        problem = f"the plan has runs of pair '{unknown[0]}', which the recipe does not define"
        raise TwinbudError(problem, where=str(store.plan_path(recipe.name)), fix=f"Delete the plan. {command}")
    image_sets, notes = store.image_sets(), dict[str, None]()
    runs = [_read_result(run, store, image_sets, notes) for run in plan.runs]
    _require_same_networks(runs, store)
    if not any(run.record for run in runs):
        raise TwinbudError(f"none of {len(runs)} runs is finished", where=str(store.path), fix=command)
    return make_tables(recipe, runs, image_sets, notes)


def _read_result(
    run: RequestedRun, store: RunStore, image_sets: Mapping[str, Mapping[str, Any]], notes: dict[str, None]
) -> RequestedRun:
    """Add the record of a run, or the reason of its failure; adds to ``notes`` why a record is not used."""
    record = None
    try:
        if store.is_done(run.run_id):
            record = store.read(run.run_id)
    except CorruptRecordError as error:
        notes[f"{error.where}: {error.problem}. The run counts as missing; 'twinbud study' executes it again."] = None
    if record is not None and record["facts"]["training_version"] != TRAINING_VERSION:
        notes[
            "Records of another version of the training code are not used. Their runs count as missing; "
            "'twinbud study' executes them again."
        ] = None
        record = None
    if record is None:
        failure = store.read_failure(run.run_id)
        return replace(run, reason=failure.reason if failure else None)
    if run.coordinates["data"] not in image_sets:
        raise TwinbudError(
            f"{MARKER} does not know the image set '{run.coordinates['data']}', of which there are records",
            where=str(store.path),
            fix="Run the study again, which adds it; finished runs are not repeated",
        )
    if record["facts"]["images"] != image_sets[run.coordinates["data"]]["fingerprint"]:
        raise TwinbudError(
            f"the record has other images than the image set '{run.coordinates['data']}' of its folder",
            where=str(store.path / "records" / f"{run.run_id}.json"),
            fix=f"Move the file to {store.path / 'set-aside'}, and run the study again",
        )
    return replace(run, record=record)


def _require_same_networks(runs: Sequence[RequestedRun], store: RunStore) -> None:
    """Refuse to compare runs of a pair that have different teachers, or of a method whose student has changed.

    Raises:
        TwinbudError: The weights of a network have changed between the runs.
    """
    networks: dict[Any, str] = {}
    for run in runs:
        if run.record is None:
            continue
        pair, method, facts = run.coordinates["pair"], run.coordinates["method"], run.record["facts"]
        for role, owner, network in (
            ("teacher", f"pair '{pair}'", facts["teacher"]),
            ("student", f"method '{method}' of pair '{pair}'", facts["settings"]["student"]),
        ):
            if networks.setdefault((role, owner), network) != network:
                raise TwinbudError(
                    f"the runs of {owner} have two different {role}s: the {role}'s file has changed",
                    where=str(store.path),
                    fix="Run the whole study again, or use another --runs",
                )


def tables_json(tables: Tables) -> dict[str, Any]:
    """Return all tables as a JSON object, with the metrics and costs of every run."""
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
            else {"missing": run.reason or "not finished"}
            for sampling, run in row.runs.items()
        },
    }


def _flat(recipe: Recipe, section: Section) -> list[dict[str, Any]]:
    """Return the CSV rows of a section, one for each row of its table; None is an empty cell."""
    rows = []
    for row in section.rows:
        flat: dict[str, Any] = {"recipe": recipe.name, "profile": section.profile}
        flat |= {**section.coordinates, **row.coordinates}
        flat |= {"samplings": row.num_done, "missing": len(row.runs) - row.num_done, "failed": row.num_failed}
        for name, value in [*row.measures.items(), *row.costs.items()]:
            mean, deviation = (value.mean, value.deviation) if value else (None, None)
            flat.setdefault(name, mean)  # a setting that is an axis, such as epochs, keeps its column
            flat[f"{name}_deviation"] = deviation
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
