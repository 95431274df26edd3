"""Format the tables of a recipe as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from twinbud.study.architectures import NUM_CLASSES, Architecture
from twinbud.study.recipe import Recipe
from twinbud.study.table_text import (
    Table,
    accuracy_table,
    architecture_table,
    cost_table,
    section_notes,
    tables_notes,
)
from twinbud.study.tables import Section, Tables


def tables_markdown(tables: Tables) -> str:
    """Return a heading, the tables and the notes of each section."""
    parts = [f"# {_escape(tables.recipe.title)}", *map(_section, tables.sections)]
    if notes := tables_notes(tables):
        parts.append("## Missing runs and notes\n\n" + _list(notes))
    return "\n\n".join(parts) + "\n"


def architectures_markdown(recipe: Recipe, architectures: Sequence[Architecture]) -> str:
    """Return the table of a recipe that lists architectures."""
    return f"# {_escape(recipe.title)}\n\n{_table(architecture_table(architectures, NUM_CLASSES))}\n"


def _section(section: Section) -> str:
    facts = f"{section.num_images:,} images: {', '.join(section.classes)}" if section.classes else ""
    parts = [
        f"## {_escape(section.title)}",
        _escape(facts),
        _table(accuracy_table(section)),
        _list(section_notes(section)),
    ]
    if not section.is_sweep:
        parts += ["### Time and memory", _table(cost_table(section))]
    return "\n\n".join(part for part in parts if part)


def _table(table: Table) -> str:
    lines = [
        _line(table.heads),
        _line(["---"] * table.num_text_columns + ["---:"] * (len(table.heads) - table.num_text_columns)),
    ]
    for cells, marked in zip(table.rows, table.marked, strict=True):
        lines.append(_line([f"*{_escape(cell)}*" if marked and cell != "–" else _escape(cell) for cell in cells]))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_escape(line)}" for line in lines)


def _escape(text: str) -> str:
    """Escape the special characters of Markdown."""
    for character in ("\\", "|", "*", "_", "<", "`"):
        text = text.replace(character, f"\\{character}")
    return text
