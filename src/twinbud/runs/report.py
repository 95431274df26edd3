"""The report of a finished run: ``summary.json``, and the page and the model card that are made from it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

from twinbud.core.errors import TwinbudError
from twinbud.core.files import require_new_file
from twinbud.report.model import RunSummary, read_summary, write_summary
from twinbud.report.model_card import write_model_card
from twinbud.report.page import write_report
from twinbud.runs.result import read_metrics
from twinbud.runs.run_dir import METRICS, REPORT, SUMMARY, read_settings

MODEL_CARD = "model/README.md"


def save_report(folder: Path, summary: RunSummary) -> tuple[str, ...]:
    """Write summary, model card and page into a run folder that has its results.

    No failure is fatal: model, predictions and metrics of the run are written already.

    Returns:
        A sentence for each file that could not be written.
    """
    writers: dict[str, Callable[[Path], None]] = {
        SUMMARY: partial(write_summary, summary=summary),
        MODEL_CARD: partial(write_model_card, summary=summary),
        REPORT: partial(write_report, summary=summary),
    }
    failures: dict[str, str] = {}
    for name, write in writers.items():
        try:
            write(folder / name)
        except Exception as error:
            failures[name] = " ".join((str(error) or type(error).__name__).split()).rstrip(".")
    advice = f"'twinbud report {shlex.quote(str(folder))}' writes it again"
    if SUMMARY in failures:
        advice = "the results of the run are complete"
    return tuple(f"{name} is missing ({reason}); {advice}" for name, reason in failures.items())


def read_run_summary(folder: Path) -> RunSummary:
    """Read the summary of a finished run, whose metrics are those in ``metrics.json`` where that is kept.

    Raises:
        TwinbudError: A file is missing or damaged, or the summary is that of another run.
    """
    summary = read_summary(folder / SUMMARY)
    if os.path.lexists(folder / METRICS) and read_metrics(folder / METRICS).evaluation != summary.metrics:
        problem = f"its metrics are not those in {METRICS} beside it"
        fix = "Restore both files, as 'twinbud train' wrote them"
        raise TwinbudError(problem, where=str(folder / SUMMARY), fix=fix)
    return summary


def rebuild_report(folder: Path, *, output: Path | None = None, force: bool = False) -> Path:
    """Write the page of a finished run again from its ``summary.json``, without images or teacher.

    Args:
        folder: Finished run. It may come from an earlier version of twinbud.
        output: File to write the page to. By default the page and the model card in the run folder are replaced.
        force: Replace ``output``.

    Returns:
        The path of the page.

    Raises:
        TwinbudError: The folder is not a finished run, its summary is missing or damaged, or ``output`` exists.

    Example:
        >>> page = rebuild_report(Path("runs/first"), output=Path("first.html"))  # doctest: +SKIP
        >>> page.name  # doctest: +SKIP
        'first.html'
    """
    read_settings(folder)
    if output is not None:
        require_new_file(output, force=force)
    summary = read_run_summary(folder)
    if output is None and (folder / MODEL_CARD).parent.is_dir():
        write_model_card(folder / MODEL_CARD, summary)
    page = output or folder / REPORT
    write_report(page, summary)
    return page
