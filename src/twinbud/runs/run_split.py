"""The split of a finished run, as later commands read it."""

from __future__ import annotations

import os
from pathlib import Path

from twinbud.core.errors import TwinbudError
from twinbud.data.split_file import SplitRow, read_split
from twinbud.runs.result import read_metrics
from twinbud.runs.run_dir import METRICS, SPLIT


def read_run_split(folder: Path) -> tuple[SplitRow, ...]:
    """Read the ``split.csv`` of a finished run, whose parts have the sizes in ``metrics.json`` where that is kept.

    Raises:
        TwinbudError: See ``read_split``; or rows are missing, or are of another run.
    """
    rows = read_split(folder / SPLIT)
    found = sum(row.split == "test" for row in rows), sum(row.split == "train" and row.labelled for row in rows)
    known = found
    if os.path.lexists(folder / METRICS):
        metrics = read_metrics(folder / METRICS)
        known = metrics.num_test, metrics.num_train
    if found != known or not all(known):
        has, had = (
            f"{test:,} test images and {labelled:,} labelled training images" for test, labelled in (found, known)
        )
        problem = f"the file has {has}" + (f", but the run had {had}" if found != known else "")
        fix = "Restore the file that 'twinbud train' wrote"
        raise TwinbudError(problem, where=str(folder / SPLIT), fix=fix)
    return rows
