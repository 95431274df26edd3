"""Format the tables and figures of a recipe as one HTML file that loads nothing, styled like a run's report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import twinbud.report
import twinbud.study
from twinbud.study.architectures import NUM_CLASSES, Architecture
from twinbud.study.figures import Drawing
from twinbud.study.recipe import Recipe
from twinbud.study.table_text import accuracy_table, architecture_table, cost_table, section_notes, tables_notes
from twinbud.study.tables import Section, Tables


def tables_page(tables: Tables, figures: Sequence[Sequence[Drawing]]) -> str:
    """Return the page of a recipe, with the tables and figures of each section."""
    sections = [_section(section, drawings) for section, drawings in zip(tables.sections, figures, strict=True)]
    done = sum(row.num_done for section in tables.sections for row in section.rows)
    requested = sum(len(row.runs) for section in tables.sections for row in section.rows)
    return _render(tables.recipe.title, f"{done:,} of {requested:,} runs", sections, tables_notes(tables))


def architectures_page(recipe: Recipe, architectures: Sequence[Architecture]) -> str:
    """Return the page of a recipe that lists architectures."""
    table = architecture_table(architectures, NUM_CLASSES)
    section = {"title": "Architectures", "facts": "", "tables": [("", table)], "notes": [], "figures": []}
    return _render(recipe.title, f"{len(architectures)} networks, none of them trained", [section], [])


def _section(section: Section, figures: Sequence[Drawing]) -> dict[str, Any]:
    tables = [("", accuracy_table(section))]
    if not section.is_sweep:
        tables.append(("Time and memory", cost_table(section)))
    return {
        "title": section.title,
        "facts": f"{section.num_images:,} images: {', '.join(section.classes)}" if section.classes else "",
        "tables": tables,
        "notes": section_notes(section),
        "figures": figures,
    }


def _render(title: str, subtitle: str, sections: Sequence[dict[str, Any]], notes: Sequence[str]) -> str:
    folders = [Path(str(package.__file__)).parent / "templates" for package in (twinbud.study, twinbud.report)]
    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["svg"] = Markup  # Matplotlib escapes all text in its SVG
    template = environment.get_template("tables.html.jinja")
    return template.render(title=title, subtitle=subtitle, sections=sections, notes=notes)
