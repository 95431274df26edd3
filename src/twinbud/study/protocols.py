"""What must be known of the images that runs saw or were measured on, so that no table compares them in silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twinbud.study.tables import Asked


def protocols(asked: Sequence[Asked]) -> tuple[str, ...]:
    """One line for each protocol that is not the paper's, with the rows that it is of."""
    done = [(run, run.record["facts"]["settings"]) for run in asked if run.record is not None]
    found = {
        "measured on a fifth of the training part, while settings were chosen; the test part stays closed": [
            run for run, settings in done if settings.get("develop")
        ],
        "another protocol: saw the whole training part, without its labels": [
            run for run, settings in done if settings.get("recover") == "unlabelled"
        ],
    }
    return tuple(
        f"{'All' if len(runs) == len(done) else ', '.join(dict.fromkeys(map(_words, runs)))}: {text}"
        for text, runs in found.items()
        if runs
    )


def _words(run: Asked) -> str:
    """Where a run stands in its table, its sampling, set and pair aside."""
    shared = {"data", "pair", "fraction", "sampling"}
    return " ".join(str(value) for axis, value in run.coordinates.items() if axis not in shared)
