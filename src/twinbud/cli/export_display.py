"""What ``twinbud export`` prints."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from twinbud.report.page import number, percent
from twinbud.runs.export import Export


def show_export(export: Export) -> None:
    """Print a row for the file and for torch, what was compared, and where the file is."""
    console = Console(highlight=False, soft_wrap=True)
    threads = sorted({count for row in export.rows for count in row.latency_seconds})
    table = Table(title="One image, from pixels to probabilities", title_justify="left")
    columns = ["", "size", *(f"{count} thread{'s' * (count > 1)}" for count in threads), "accuracy", "ECE"]
    has_sets = any(row.coverage is not None for row in export.rows)
    columns += ["coverage"] if has_sets else []
    for column in columns:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in export.rows:
        times = (f"{1000 * row.latency_seconds[count]:.2f} ms" for count in threads)
        scores = [percent(row.accuracy), number(row.ece), *([percent(row.coverage)] if has_sets else [])]
        table.add_row(row.name, f"{row.num_bytes / 1e6:.2f} MB", *times, *scores)
    console.print(table)
    gate = export.gate
    ties = f", {gate.num_ties} ties decided otherwise" if gate.num_ties else ""
    console.print(f"largest difference of a logit: {gate.logit_difference:.2g}{ties}", markup=False)
    for note in export.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"written: {export.file}", markup=False)
