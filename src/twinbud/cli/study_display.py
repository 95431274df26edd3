"""Terminal output of a study: its plan, live bars or log lines while it runs, and its result."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from twinbud.core.progress import duration
from twinbud.study.grid import PlannedRun
from twinbud.study.run import Study
from twinbud.study.status import OnStatus, StudyStatus

_MAX_SHOWN_RUNS = 16


@contextmanager
def show_status(runs: Mapping[str, PlannedRun], interval: float = 10.0) -> Iterator[OnStatus]:
    """Show the status of a study while the context is open.

    Args:
        runs: All runs, by run id.
        interval: Seconds between two lines where standard error is not a terminal, or one that cannot redraw lines.
    """
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        yield _LogLines(console, interval)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def show(status: StudyStatus) -> None:
            if status.message:
                live.console.print(status.message, markup=False, soft_wrap=True)
            live.update(_status_view(status, runs))

        yield show


class _LogLines:
    """Prints a line for each message, and one every ``interval`` seconds."""

    def __init__(self, console: Console, interval: float) -> None:
        self.console, self.interval = console, interval
        self.last = time.monotonic()

    def __call__(self, status: StudyStatus) -> None:
        now = time.monotonic()
        if status.message or now - self.last >= self.interval:
            self.last = now
            message = f" · {status.message}" if status.message else ""
            self.console.print(f"study: {_counts(status)}{message}", markup=False, soft_wrap=True)


def _counts(status: StudyStatus) -> str:
    parts = [f"{status.num_done}/{status.num_runs} done"]
    for count, word in ((status.num_failed, "failed"), (status.num_interrupted, "interrupted")):
        parts += [f"{count} {word}"] if count else []
    parts += [f"{len(status.running)} running"] if status.running else []
    parts += [f"{duration(status.seconds_left)} left"] if status.seconds_left is not None else []
    return " · ".join(parts)


def _status_view(status: StudyStatus, runs: Mapping[str, PlannedRun]) -> Group:
    rows = Table.grid(padding=(0, 2))
    for run_id, latest in list(status.running.items())[:_MAX_SHOWN_RUNS]:
        run = runs[run_id]
        rows.add_row(
            Text(run.label, overflow="ellipsis", no_wrap=True),
            ProgressBar(total=run.num_steps, completed=latest.num_steps, width=20),
            Text(latest.text, style="dim", overflow="ellipsis", no_wrap=True),
        )
    total = Table.grid(padding=(0, 2))
    num_settled = status.num_done + status.num_failed
    total.add_row(Text("study", style="bold"), ProgressBar(total=status.num_runs, completed=num_settled, width=40))
    return Group(total, Text(_counts(status), style="bold"), rows)


def show_plan(study: Study, seconds: float) -> None:
    """Print the runs of a study by group, and the estimated time of those that are missing."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(_plan_table(study))
    missing = len(study.missing)
    line = f"{len(study.distinct)} runs: {len(study.done)} done, {missing} to do"
    if study.failures:
        line += f" ({len(study.failures)} failed before)"
    if missing:
        workers = study.num_workers
        line += f"; about {duration(seconds)} with {workers} worker{'s' if workers > 1 else ''}"
    console.print(line, markup=False)
    if study.corrupt:
        console.print(f"{len(study.corrupt)} records are corrupt and would be made again", markup=False)


def _plan_table(study: Study) -> Table:
    groups: dict[tuple[str, str, str, str], list[PlannedRun]] = {}
    for run in study.distinct.values():
        at = run.coordinates
        method = f"{at['method']}, {at['sweep']}" if "sweep" in at else str(at["method"])
        groups.setdefault((at["data"], at["pair"], f"{100 * at['fraction']:g} %", method), []).append(run)
    table = Table(title=Text(study.recipe.title), title_justify="left")
    for name in ("images", "pair", "labels", "method"):
        table.add_column(name)
    for name in ("runs", "done", "failed", "steps a run"):
        table.add_column(name, justify="right")
    for words, runs in groups.items():
        counts: Counter[str] = Counter()
        for run in runs:
            counts["done"] += run.run_id in study.done
            counts["failed"] += run.run_id in study.failures
        steps = sorted({run.num_steps for run in runs})
        numbers = (len(runs), counts["done"], counts["failed"], " – ".join(f"{step:,}" for step in steps))
        table.add_row(*map(Text, words), *map(str, numbers))
    return table


def show_study_result(study: Study, tables: str) -> None:
    """Print the result of a study, and the command that writes its tables."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{len(study.done)} of {len(study.distinct)} runs done", markup=False)
    reasons = Counter(failure.reason for failure in study.failures.values())
    for reason, count in reasons.most_common():
        console.print(f"failed ({count}): {reason}", markup=False)
    if study.done:
        console.print(f"next: {tables}", markup=False)


def show_written(paths: Iterable[Path]) -> None:
    """Print the paths of the tables."""
    console = Console(highlight=False, soft_wrap=True)
    for path in paths:
        console.print(f"written: {path}", markup=False)
