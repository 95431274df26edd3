"""What ``twinbud compare`` prints."""

from __future__ import annotations

import json
import sys

from rich.console import Console
from rich.table import Table

from twinbud.core.typed_json import to_json
from twinbud.evaluation.bootstrap import Interval
from twinbud.report.page import number, percent
from twinbud.runs.compare import Comparison


def show_comparison(comparison: Comparison, *, as_json: bool) -> None:
    """Print a row for each run, the best one, and how far the others are from it; or one JSON object."""
    if as_json:
        content = to_json(comparison)
        for row, run in zip(content["runs"], comparison.runs, strict=True):
            row |= {"folder": str(run.folder), "is_undecided": run.is_undecided}
        sys.stdout.write(json.dumps(content, indent=2) + "\n")
        return
    units = f"{comparison.num_images:,} labelled images"
    if comparison.num_units < comparison.num_images:
        units += f" of {comparison.num_units:,} patients"
    table = Table(title=f"{units}, each judged out of {comparison.num_folds} folds", title_justify="left")
    for name in ("run", "method", "log-loss", "accuracy", "parameters", "latency"):
        table.add_column(name, justify="left" if name in ("run", "method") else "right", no_wrap=True)
    for run in comparison.runs:
        table.add_row(
            str(run.folder),
            run.method,
            number(run.log_loss),
            percent(run.accuracy),
            "–" if run.num_parameters is None else f"{run.num_parameters / 1e6:.1f} M",
            "–" if run.latency_seconds is None else f"{1000 * run.latency_seconds:.0f} ms",
        )
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"lowest log-loss: {comparison.best.folder}", markup=False)
    for run in comparison.runs[1:]:
        told = "undecided, the interval of the log-loss contains 0" if run.is_undecided else "worse"
        console.print(
            f"{run.folder}: log-loss {_difference(run.log_loss_difference)},"
            f" accuracy {_difference(run.accuracy_difference)}: {told}",
            markup=False,
        )


def _difference(found: tuple[float, Interval] | None) -> str:
    assert found is not None, "every run but the best one has a difference"
    mean, (low, high) = found
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
