"""What must be known of the images that runs saw or were measured on, so that no table compares them in silence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from twinbud.study.requests import RequestedRun


def protocol_notes(requested: Sequence[RequestedRun]) -> tuple[str, ...]:
    """One line for each protocol that is not the paper's, with the rows that it is of."""
    done = [(run, run.record["facts"]["settings"]) for run in requested if run.record is not None]
    found = {
        "measured on a fifth of the training part, while settings were chosen; the test part stays closed": [
            run for run, settings in done if settings.get("develop")
        ],
        "recovered from the teacher before training, on the labelled images alone, which the paper does not do": [
            run for run, settings in done if settings.get("recover") == "labelled"
        ],
        "another protocol: the whole training part may be seen, without its labels": [
            run for run, settings in done if settings.get("recover") == "unlabelled"
        ],
    }
    return (*_told(found, len(done)), *_short_of_room(done))


def _told(found: Mapping[str, Sequence[RequestedRun]], num_done: int) -> Iterator[str]:
    return (
        f"{'All' if len(runs) == num_done else ', '.join(dict.fromkeys(map(_words, runs)))}: {text}"
        for text, runs in found.items()
        if runs
    )


def _short_of_room(requested: Sequence[tuple[RequestedRun, Mapping[str, Any]]]) -> Iterator[str]:
    """Of recoveries whose least squares looked at fewer views than they were asked to."""
    shares: dict[str, float] = {}
    for run, _ in requested:
        assert run.record is not None
        cost = run.record["cost"]
        if cost.get("recover_num_views_asked", 0) > cost.get("recover_num_views", 0):
            share = cost["recover_num_views"] / cost["recover_num_views_asked"]
            shares[_words(run)] = min(share, shares.get(_words(run), 1.0))
    for words, share in shares.items():
        yield f"{words}: least squares had room for as few as {share:.0%} of the views that it was to look at"


def _words(run: RequestedRun) -> str:
    """Where a run stands in its table, its sampling, set and pair aside."""
    shared = {"data", "pair", "fraction", "sampling"}
    return " ".join(str(value) for axis, value in run.coordinates.items() if axis not in shared)
