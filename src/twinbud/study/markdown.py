"""The tables of a recipe as Markdown."""

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
    """A heading and two tables a section, with what to keep in mind below each."""
    parts = [f"# {_text(tables.recipe.title)}", *map(_section, tables.sections)]
    if notes := tables_notes(tables):
        parts.append("## Missing runs and remarks\n\n" + _list(notes))
    return "\n\n".join(parts) + "\n"


def architectures_markdown(recipe: Recipe, architectures: Sequence[Architecture]) -> str:
    """One table."""
    return f"# {_text(recipe.title)}\n\n{_table(architecture_table(architectures, NUM_CLASSES))}\n"


def _section(section: Section) -> str:
    facts = f"{section.num_images:,} images: {', '.join(section.classes)}" if section.classes else ""
    parts = [f"## {_text(section.title)}", _text(facts), _table(accuracy_table(section)), _list(section_notes(section))]
    if not section.is_sweep:
        parts += ["### Time and memory", _table(cost_table(section))]
    return "\n\n".join(part for part in parts if part)


def _table(table: Table) -> str:
    lines = [_line(table.heads), _line(["---"] * table.num_words + ["---:"] * (len(table.heads) - table.num_words))]
    for cells, marked in zip(table.rows, table.marked, strict=True):
        lines.append(_line([f"*{_text(cell)}*" if marked and cell != "–" else _text(cell) for cell in cells]))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_text(line)}" for line in lines)


def _text(text: str) -> str:
    """Text in which nothing is taken for a mark of Markdown."""
    for mark in ("\\", "|", "*", "_", "<", "`"):
        text = text.replace(mark, f"\\{mark}")
    return text
