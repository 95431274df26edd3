"""What a person sees of a study: live bars on a terminal, lines elsewhere, and words before and after."""

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
from twinbud.study.executors.local import StudyStatus, Watch
from twinbud.study.grid import PlannedRun
from twinbud.study.run import Study

_SHOWN_RUNS = 16


@contextmanager
def watching(runs: Mapping[str, PlannedRun], interval: float = 10.0) -> Iterator[Watch]:
    """Shows a study for as long as the context lasts.

    Args:
        runs: All of them, by identity.
        interval: Seconds between two lines where standard error is no terminal.
    """
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _Lines(console, interval)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def show(status: StudyStatus) -> None:
            if status.line:
                live.console.print(status.line, markup=False, soft_wrap=True)
            live.update(_picture(status, runs))

        yield show


class _Lines:
    """A line whenever a run has ended, and one every few seconds besides."""

    def __init__(self, console: Console, interval: float) -> None:
        self.console, self.interval = console, interval
        self.last = time.monotonic()

    def __call__(self, status: StudyStatus) -> None:
        now = time.monotonic()
        if status.line or now - self.last >= self.interval:
            self.last = now
            line = f" · {status.line}" if status.line else ""
            self.console.print(f"study: {_counts(status)}{line}", markup=False, soft_wrap=True)


def _counts(status: StudyStatus) -> str:
    words = [f"{status.done}/{status.total} done"]
    for number, word in ((status.failed, "failed"), (status.interrupted, "interrupted")):
        words += [f"{number} {word}"] if number else []
    words += [f"{len(status.running)} running"] if status.running else []
    words += [f"{duration(status.seconds_left)} left"] if status.seconds_left is not None else []
    return " · ".join(words)


def _picture(status: StudyStatus, runs: Mapping[str, PlannedRun]) -> Group:
    rows = Table.grid(padding=(0, 2))
    for run_id, (num_steps, text) in list(status.running.items())[:_SHOWN_RUNS]:
        run = runs[run_id]
        rows.add_row(
            Text(run.label, overflow="ellipsis", no_wrap=True),
            ProgressBar(total=run.num_steps, completed=num_steps, width=20),
            Text(text or "starting", style="dim", overflow="ellipsis", no_wrap=True),
        )
    whole = Table.grid(padding=(0, 2))
    ended = status.done + status.failed
    whole.add_row(Text("study", style="bold"), ProgressBar(total=status.total, completed=ended, width=40))
    return Group(whole, Text(_counts(status), style="bold"), rows)


def show_plan(study: Study, seconds: float) -> None:
    """What a study would do: its runs, group by group, and how long those will take that are missing."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(_plan_table(study))
    missing = len(study.missing)
    line = f"{len(study.distinct)} runs: {len(study.done)} done, {missing} to do"
    if study.failures:
        line += f" ({len(study.failures)} of them failed before)"
    if missing:
        workers = min(len(study.shares), missing)
        line += f"; about {duration(seconds)} with {workers} worker{'s' if workers > 1 else ''}"
    console.print(line, markup=False)
    if study.corrupt:
        console.print(f"{len(study.corrupt)} records are corrupt and would be set aside", markup=False)


def _plan_table(study: Study) -> Table:
    groups: dict[tuple[str, str, str, str], list[PlannedRun]] = {}
    for run in study.distinct.values():
        at = run.coordinates
        method = f"{at['method']}, {at['sweep']}" if "sweep" in at else str(at["method"])
        groups.setdefault((at["data"], at["pair"], f"{100 * at['fraction']:g} %", method), []).append(run)
    table = Table(title=study.recipe.title, title_justify="left")
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
        table.add_row(*words, *map(str, numbers))
    return table


def show_study_result(study: Study, tables: str) -> None:
    """How a study ended, and the command that makes its tables."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{len(study.done)} of {len(study.distinct)} runs done", markup=False)
    reasons = Counter(reason for _, reason in study.failures.values())
    for reason, count in reasons.most_common():
        console.print(f"failed ({count}): {reason}", markup=False)
    if study.done:
        console.print(f"next: {tables}", markup=False)


def show_written(paths: Iterable[Path]) -> None:
    """Where the tables are."""
    console = Console(highlight=False, soft_wrap=True)
    for path in paths:
        console.print(f"written: {path}", markup=False)
