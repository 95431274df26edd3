"""What the command line prints of a calibrated run."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from twinbud.report.page import number, percent
from twinbud.trust.measure import Calibration, Measured
from twinbud.trust.report import TrustReport, broken_promises


def show_trust(report: TrustReport, console: Console) -> None:
    """Print calibration before and after, how prediction sets hold, and how many images are novel."""
    table = Table(title=f"Probabilities of {report.num_images:,} images", title_justify="left")
    for name in ("error", "network alone", "calibrated"):
        table.add_column(name, justify="left" if name == "error" else "right")
    for part in fields(Calibration):
        if part.metadata:
            measured = (getattr(calibration, part.name) for calibration in (report.before, report.after))
            table.add_row(part.metadata["label"], *map(_measured, measured))
    console.print(table)
    console.print(f"temperature: {report.trust.temperature:.3f}. {report.trust.origin}", markup=False)
    console.print(
        "for comparison: even perfect probabilities would show a calibration error of about"
        f" {number(report.after.ece_by_chance)} with this many images",
        markup=False,
    )
    if report.coverage is not None:
        covered, low_high = report.coverage.covered.value, report.coverage.covered.interval
        interval = f" ({percent(low_high[0])} to {percent(low_high[1])})" if low_high else ""
        console.print(
            f"prediction sets: {percent(covered)}{interval} contain the right class,"
            f" {percent(report.coverage.wanted, 0)} wanted; {report.coverage.mean_size:.2f} classes on average",
            markup=False,
        )
    console.print(f"unlike the training images: {percent(report.num_novel / report.num_images)}", markup=False)


def show_calibration(report: TrustReport, folder: Path) -> None:
    """Print what ``twinbud calibrate`` measured, and what it wrote."""
    console = Console(highlight=False, soft_wrap=True)
    show_trust(report, console)
    for sentence in broken_promises(report):
        console.print(f"warning: {sentence}", markup=False)
    console.print(f"written: {folder / 'model' / 'trust.json'}", markup=False)
    console.print(f"report:  {folder / 'report.html'}", markup=False)


def _measured(measured: Measured) -> str:
    interval = f" ({number(measured.interval[0])} – {number(measured.interval[1])})" if measured.interval else ""
    return f"{number(measured.value)}{interval}"
