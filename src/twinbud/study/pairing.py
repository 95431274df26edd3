"""Which runs can be compared sampling by sampling: those with the same labelled images and the same test images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twinbud.study.requests import RequestedRun

DRAWN_BY = ("develop", "fraction", "near_duplicates", "seed", "split_duplicates", "split_seed", "subset")
"""Settings that decide which images of a set are labelled, and which are tested."""

Samplings = Mapping[int, RequestedRun]
"""The runs of a row by sampling."""


def paired_runs(runs: Samplings, others: Samplings) -> tuple[dict[int, RequestedRun], int]:
    """Return the finished runs whose sampling has the same images in both rows, and the number of those with others.

    A method, or a sweep, can have settings of the split.
    """
    paired, num_both = dict[int, RequestedRun](), 0
    for sampling, run in runs.items():
        other = others.get(sampling)
        if run.record is not None and other is not None and other.record is not None:
            num_both += 1
            if _drawn(run.record) == _drawn(other.record):
                paired[sampling] = run
    return paired, num_both - len(paired)


def _drawn(record: Mapping[str, Any]) -> list[Any]:
    return [record["facts"]["settings"].get(name) for name in DRAWN_BY]
