"""The table of ``make bench`` and the lines that hold it against the targets; pure functions of measurements."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from measuring import Measurement


class Row(NamedTuple):
    """What one line of the table stands for."""

    model: str
    image_size: int
    method: str
    program: str


Found = Mapping[Row, Sequence[Measurement]]
"""Measurements in the order in which the turns took them."""


@dataclass(frozen=True)
class Target:
    """A number held against its limit."""

    name: str
    value: float
    limit: float
    unit: str = ""
    at_least: bool = False
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the number is on the right side."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        note = f" ({self.note})" if self.note else ""
        verdict = "met" if self.met else "**missed**"
        return f"- {verdict}: {self.name}: {self.value:.3g}{self.unit}, target {sign} {self.limit:.3g}{self.unit}{note}"


def table(found: Found, titles: Mapping[str, str]) -> Iterator[str]:
    """One Markdown line a row; ratios are medians of pairs of the same turn."""
    yield (
        "| model | px | method | program | images/s (min – max) | s an epoch | peak MiB above load "
        "| twinbud is faster by |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for row, measurements in found.items():
        rates = [m.images_per_second for m in measurements]
        own = found.get(row._replace(program="twinbud"))
        faster = "" if own is None or row.program == "twinbud" else f"{epoch_ratio(measurements, own):.2f} ×"
        yield (
            f"| {titles.get(row.model, row.model)} | {row.image_size} | {row.method} | {row.program} "
            f"| {statistics.median(rates):.1f} ({min(rates):.1f} – {max(rates):.1f}) "
            f"| {median(measurements, 'epoch_seconds'):.2f} | {median(measurements, 'peak_mib'):.0f} | {faster} |"
        )


def limit_lines(row: Row, limit: Mapping[str, Any], found: Found, precision: str, title: str) -> Iterator[str]:
    """How near a model at one size comes to what the machine can do."""
    fastest = limit["gflops"]
    shares = []
    for method in ("selection", "dual"):
        measurements = found.get(row._replace(method=method))
        if measurements:
            rate = statistics.median(m.images_per_second for m in measurements)
            reached = limit["gflop_step"][method] / limit["batch"] * rate
            shares.append(f"`{method}` reaches {reached:.0f} GFLOP/s, {reached / fastest[precision]:.0%} of it")
    yield (
        f"- {title}, {row.image_size} px: f = {limit['f']:.3f} "
        f"(forward {1000 * limit['forward_seconds']:.0f} of {1000 * limit['step_seconds']:.0f} ms a step, augmentation "
        f"{1000 * limit['augmentation_seconds']:.1f} ms); its matrix products: {fastest['float32']:.0f} GFLOP/s "
        f"in float32, {fastest['bf16']:.0f} in bf16; {', '.join(shares)} ({precision})"
    )


def twin_targets(row: Row, limit: Mapping[str, Any], found: Found, title: str) -> Iterator[Target]:
    """What S′ may cost in time and in memory."""
    alone, both = found[row._replace(method="selection")], found[row._replace(method="dual")]
    where = f"{title}, {row.image_size} px"
    f = limit["f"]
    inside = limit["dual_step_seconds"] / limit["step_seconds"]
    yield Target(
        f"`dual` / `selection` in time, {where}",
        epoch_ratio(both, alone),
        (1 + f) * 1.03,
        " ×",
        note=f"(1 + f) × 1.03 with f = {f:.3f}; in one process, step by step, {inside:.3f} ×",
    )
    yield Target(
        f"`dual` − `selection` in peak memory above load, {where}",
        median(both, "peak_mib") - median(alone, "peak_mib"),
        limit["auxiliary_mib"] + 4,
        " MiB",
        note=f"S′ has {limit['auxiliary_mib']:.1f} MiB of weights, already held after loading",
    )


def whole_run_targets(
    method: str, own: Sequence[Measurement], rival: Sequence[Measurement], *, epochs: int
) -> Iterator[Target]:
    """From the command to the finished run."""
    ratio = statistics.median(b.wall_seconds / a.wall_seconds for a, b in zip(own, rival, strict=True))
    yield Target(
        f"end to end, {epochs} epochs of {own[0].num_train} images, `{method}`: faster than Trainer",
        ratio,
        1.3,
        " ×",
        at_least=True,
        note=f"{median(own, 'wall_seconds'):.1f} s against {median(rival, 'wall_seconds'):.1f} s",
    )
    busy = [m.found["in_epochs_seconds"] + m.found["test_seconds"] for m in own]
    share = statistics.median(1 - b / m.wall_seconds for b, m in zip(busy, own, strict=True))
    start = statistics.median(m.found["to_training_seconds"] for m in own)
    test = statistics.median(m.found["test_seconds"] for m in own)
    yield Target(
        f"loading and bookkeeping, `{method}`",
        100 * share,
        3,
        " %",
        note=f"all wall time outside epochs and test pass; {start:.1f} s before training, test pass {test:.1f} s",
    )
    yield Target(f"start of `train` to its first step, `{method}`, warm cache", start, 10, " s")


def epoch_ratio(these: Sequence[Measurement], those: Sequence[Measurement]) -> float:
    """How many times as long an epoch of ``these`` takes: the median over the turns."""
    return statistics.median(a.epoch_seconds / b.epoch_seconds for a, b in zip(these, those, strict=True))


def median(measurements: Sequence[Measurement], name: str) -> float:
    """Of one attribute."""
    return statistics.median(getattr(m, name) for m in measurements)
