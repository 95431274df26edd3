"""What a command prints when it is done."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from twinbud.core.csv_files import format_csv
from twinbud.core.progress import duration
from twinbud.data.index import IgnoredFile
from twinbud.evaluation.metrics import EvaluationMetrics
from twinbud.evaluation.predictions import Predictions, prediction_rows
from twinbud.models.selection import SelectionPlan
from twinbud.models.selection_io import Selection
from twinbud.report.page import number, percent

if TYPE_CHECKING:
    from twinbud.auditing.findings import Audit
    from twinbud.evaluation.leak import LeakMetrics
    from twinbud.explaining.explanation import Explanations
    from twinbud.runs.demo import Demo
    from twinbud.runs.inference import Evaluation
    from twinbud.runs.result import RunResult
    from twinbud.runs.teach_result import TeachResult


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def show_run(run: RunResult) -> None:
    """Print the metrics of a run, what to keep in mind, and where everything is."""
    console = _console()
    console.print(_metrics_table(run.metrics))
    if run.metrics.leak is not None:
        console.print(_leak_table(run.metrics.leak))
        console.print(run.metrics.leak.claim, markup=False)
    for note in run.summary.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"model:  {run.folder / 'model'}", markup=False)
    if not run.unwritten:
        console.print(f"report: {run.folder / 'report.html'}", markup=False)


def show_evaluation(evaluation: Evaluation, output: Path | None) -> None:
    """Print the metrics, which images they are of, and where they were written."""
    console = _console()
    console.print(_metrics_table(evaluation.metrics))
    if evaluation.trust is not None:
        from twinbud.cli.trust_display import show_trust

        show_trust(evaluation.trust, console)
    console.print(f"note: {evaluation.note}", markup=False)
    for warning in evaluation.warnings:
        console.print(f"warning: {warning}", markup=False)
    show_ignored(evaluation.ignored)
    if output is not None:
        console.print(f"written: {output}", markup=False)


def show_demo(demo: Demo) -> None:
    """Print a row for each method, and where the page is."""
    console = _console()
    table = Table(
        title="One small network, the same labelled images and epochs, three ways to train it",
        title_justify="left",
    )
    for name in ("method", "accuracy", "95 % interval", "AUROC", "training"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for name, run in demo.runs.items():
        low, high = run.metrics.confidence_intervals["accuracy"] or (None, None)
        table.add_row(
            name,
            percent(run.metrics.accuracy),
            f"{percent(low)} – {percent(high)}",
            number(run.metrics.auroc_macro),
            duration(run.metrics.train_seconds),
        )
    console.print(table)
    console.print(f"report: {demo.report.resolve()}", markup=False)


def show_teaching(taught: TeachResult) -> None:
    """Print how good the features were and are, which images were used, and how to use the teacher."""
    from twinbud.runs.teach_result import measurements

    console = _console()
    metrics = taught.metrics
    table = Table(title=f"Features, on {metrics.num_held_out:,} images not trained on", title_justify="left")
    for name in ("measured", "random start", "taught", "source"):
        table.add_column(name, justify="left" if name == "measured" else "right")
    for name, *values in measurements(metrics):
        table.add_row(name, *map(number, values))
    console.print(table)
    for note in taught.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"teacher: --teacher local-dir:{taught.folder}", markup=False)


def show_selection(selection: Selection, output: Path) -> None:
    """Print each width's sizes and overlap, and what became of the tensors."""
    console = _console()
    table = Table(title=f"{selection.teacher} → {selection.student_spec.architecture}", title_justify="left")
    for name in ("width", "teacher", "student", "shared with auxiliary"):
        table.add_column(name, justify="left" if name == "width" else "right")
    for name, width in selection.plan.widths.items():
        table.add_row(name, str(width.teacher_size), str(width.student_size), str(width.overlap))
    console.print(table)
    for line in tensor_status(selection.plan):
        console.print(line, markup=False)
    console.print(f"written: {output}", markup=False)


def tensor_status(plan: SelectionPlan) -> list[str]:
    """Return how many tensors of each side ended how."""
    lines = []
    for side, tensors in (("student", plan.student_tensors), ("teacher", plan.teacher_tensors)):
        counts = Counter(status.kind for status in tensors.values())
        lines.append(f"{side}: {', '.join(f'{count} tensors {kind}' for kind, count in counts.items())}")
    return lines


def show_predictions(predictions: Predictions, *, logits: bool = False) -> None:
    """Print the predictions as CSV on standard output."""
    sys.stdout.write(format_csv(prediction_rows(predictions, logits=logits)))


def show_ignored(ignored: Iterable[IgnoredFile]) -> None:
    """Print the files that were left out, on standard error."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for file in ignored:
        console.print(f"left out: {file.path} ({file.reason})", markup=False)


def show_explanations(explained: Explanations, report: Path | None) -> None:
    """Print how many maps passed the checks, those that did not, and where the pictures are."""
    console = _console()
    for each in explained.explanations:
        if each.warning:
            console.print(f"{each.path}: {each.warning}", markup=False)
    console.print(f"{explained.summary}.", markup=False)
    console.print(f"note: {explained.weight_check.sentence}", markup=False)
    show_ignored(explained.ignored)
    console.print(f"written: {explained.folder}", markup=False)
    if report is not None:
        console.print(f"report: {report}", markup=False)


def show_audit(audit: Audit, folder: Path) -> None:
    """Print what an audit found, and where its page is."""
    from twinbud.auditing.page import PAGE, summary_lines

    console = _console()
    for line in summary_lines(audit):
        console.print(line, markup=False, highlight=False)
    console.print(f"report: {folder / PAGE}", markup=False)


def show_written(path: Path) -> None:
    """Print where a file or folder is."""
    _console().print(f"written: {path}", markup=False)


def _metrics_table(metrics: EvaluationMetrics) -> Table:
    table = Table(title=f"{metrics.num_test:,} test images", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    patients = metrics.patients
    if patients is not None:
        table.add_column(f"of {patients.num_test:,} patients", justify="right")
        table.add_column("95 % interval", justify="right")
    for name, (word, _) in metrics.texts.items():
        cells = [cell for part in (metrics, patients) if part for cell in _value_and_interval(part, name)]
        table.add_row(word, *cells)
    return table


def _leak_table(leak: LeakMetrics) -> Table:
    table = Table(title="What a naive split would claim", title_justify="left")
    for name in ("test images", "number", "accuracy", "95 % interval"):
        table.add_column(name, justify="left" if name == "test images" else "right")
    for name, (count, accuracy, ends) in leak.rows.items():
        interval = f"{percent(ends[0])} – {percent(ends[1])}" if ends else "–"
        table.add_row(name, f"{count:,}", percent(accuracy), interval)
    return table


def _value_and_interval(metrics: EvaluationMetrics, name: str) -> tuple[str, str]:
    interval = metrics.confidence_intervals.get(name)
    text = f"{number(interval[0])} – {number(interval[1])}" if interval else "–"
    return number(getattr(metrics, name)), text
