"""The acceptance runs: does selection beat random initialisation on real images, and what does S′ add?

Paper's Tables 2-4 in small: `quick` profile, 112 px, 5 % of the training labels, half of dinov2-small.

    python benchmarks/acceptance.py --data DATA --runs RUNS [--threads 2] [--only brain-mri]

DATA holds the folders brain-mri, chest-xray and lung-ct. A finished run is not done again, so the command can be
stopped and repeated. It ends with the Markdown tables that EXPERIMENTS.md shows. About 90 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

SEEDS = (0, 1, 2)


class Job(NamedTuple):
    """One run."""

    data: str
    method: str
    seed: int
    variant: str = ""

    @property
    def name(self) -> str:
        """The run's folder."""
        return f"{self.data}-{self.method}-{self.seed}" + (f"-{self.variant}" if self.variant else "")

    @property
    def options(self) -> list[str]:
        """What the variant adds to the command."""
        return {"splitdup": ["--split-duplicates"], "layerscale": ["--layer-scale", "timm"], "": []}[self.variant]


JOBS = [
    *(Job("brain-mri", method, seed) for seed in SEEDS for method in ("dual", "selection", "timm")),
    Job("brain-mri", "xavier", 0),
    *(Job("brain-mri", "kaiming", seed) for seed in SEEDS),
    *(Job(data, method, 0) for data in ("chest-xray", "lung-ct") for method in ("dual", "timm")),
    *(Job("brain-mri", method, 0, "splitdup") for method in ("dual", "selection", "timm")),
    Job("brain-mri", "timm", 0, "layerscale"),
]


def main() -> None:
    """Do what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="Do only runs whose name begins so.")
    arguments = parser.parse_args()
    for job in JOBS:
        if job.name.startswith(arguments.only) and not (arguments.runs / job.name / "metrics.json").exists():
            train(job, arguments)
    for line in tables(arguments.runs):
        print(line)


def train(job: Job, arguments: argparse.Namespace) -> None:
    """Do one run with the command a user would type."""
    command = [
        *(sys.executable, "-m", "twinbud", "train", "--data", str(arguments.data / job.data)),
        *("--teacher", "dinov2-small", "--profile", "quick", "--near-duplicates", "ignore"),
        *("--fraction", "0.05", "--method", job.method),
        *("--seed", str(job.seed), "--threads", str(arguments.threads), *job.options),
        *("--output", str(arguments.runs / job.name), "--force"),
    ]
    subprocess.run(command, check=True)


def tables(runs: Path) -> Iterable[str]:
    """Every finished run, then the paired differences, in Markdown."""
    metrics = {
        job: json.loads((runs / job.name / "metrics.json").read_text())
        for job in JOBS
        if (runs / job.name / "metrics.json").exists()
    }
    yield "| run | labelled | steps | test images | accuracy | 95 % interval | macro AUROC | ECE |"
    yield "|---|---|---|---|---|---|---|---|"
    for job, found in metrics.items():
        low, high = found["confidence_intervals"]["accuracy"]
        yield (
            f"| {job.name} | {found['num_train']} | {found['num_steps']} | {found['num_test']} "
            f"| {found['accuracy']:.3f} | {low:.3f} – {high:.3f} | {found['auroc_macro']:.3f} | {found['ece']:.3f} |"
        )
    yield ""
    for better, worse in (("selection", "timm"), ("dual", "selection"), ("dual", "timm"), ("kaiming", "dual")):
        yield from difference(metrics, better, worse)


def difference(metrics: dict[Job, Any], better: str, worse: str) -> Iterable[str]:
    """The mean difference over the seeds that both methods have, on the same samplings of one split."""
    pairs = [(Job("brain-mri", better, seed), Job("brain-mri", worse, seed)) for seed in SEEDS]
    points = [100 * (metrics[a]["accuracy"] - metrics[b]["accuracy"]) for a, b in pairs if {a, b} <= set(metrics)]
    if len(points) > 1:
        each = ", ".join(f"{point:+.1f}" for point in points)
        yield (
            f"- {better} − {worse}, brain-mri: {statistics.mean(points):+.1f} points on average "
            f"(deviation {statistics.stdev(points):.1f}; {each}) over {len(points)} samplings, one split"
        )


if __name__ == "__main__":
    main()
