"""Notes about runs that were trained or tested on other images than the paper's protocol uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from twinbud.study.requests import RequestedRun


def protocol_notes(requested: Sequence[RequestedRun]) -> tuple[str, ...]:
    """Return one note for each protocol that differs from the paper's, with the methods that it concerns."""
    done = [(run, run.record["facts"]["settings"]) for run in requested if run.record is not None]
    protocols = {
        "tested on one fifth of the training part (develop: true); the test part was not used": [
            run for run, settings in done if settings.get("develop")
        ],
        "recovered from the teacher on the labelled images before training (recover: labelled), which the paper does "
        "not do": [run for run, settings in done if settings.get("recover") == "labelled"],
        "recovered from the teacher on the whole training part without its labels (recover: unlabelled), which the "
        "paper does not do": [run for run, settings in done if settings.get("recover") == "unlabelled"],
    }
    return (*_format(protocols, len(done)), *_memory_limit_notes(done))


def _format(protocols: Mapping[str, Sequence[RequestedRun]], num_done: int) -> Iterator[str]:
    for text, runs in protocols.items():
        if runs:
            names = "All runs" if len(runs) == num_done else ", ".join(dict.fromkeys(map(_name, runs)))
            yield f"{names}: {text}"


def _memory_limit_notes(done: Sequence[tuple[RequestedRun, Mapping[str, Any]]]) -> Iterator[str]:
    """Yield a note for each method whose least squares used fewer views than requested, for lack of memory."""
    shares: dict[str, float] = {}
    for run, _ in done:
        assert run.record is not None
        cost, name = run.record["cost"], _name(run)
        if cost.get("recover_num_views_asked", 0) > cost.get("recover_num_views", 0):
            share = cost["recover_num_views"] / cost["recover_num_views_asked"]
            shares[name] = min(share, shares.get(name, 1.0))
    for name, share in shares.items():
        yield f"{name}: least squares used only {share:.0%} of the requested views (limit: recover_memory)"


def _name(run: RequestedRun) -> str:
    """Return the method, and the values of further axes."""
    shared = {"data", "pair", "fraction", "sampling"}
    return " ".join(str(value) for axis, value in run.coordinates.items() if axis not in shared)
