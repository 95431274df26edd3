"""Images a second and peak memory of `selection` and `dual`, measured in turns.

    python benchmarks/speed.py --data DATA/brain-mri [--repeats 5] [--epochs 4] [--image-size 112]

Each repeat is a fresh process that trains half of dinov2-small on 5 % of the set; the medians are printed. Nothing
else should run on the machine. About 6 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

METHODS = ("selection", "dual")
FIGURES = ("images_per_second", "peak_memory_mib", "memory_before_training_mib")


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=112)
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    for _ in range(arguments.repeats):
        for method in METHODS:
            found[method].append(measure(method, arguments))
    medians = {
        method: {figure: statistics.median(run[figure] for run in runs) for figure in FIGURES}
        for method, runs in found.items()
    }
    print(f"| method | images/s (of {arguments.repeats}: min – max) | peak MiB | of which before training |")
    print("|---|---|---|---|")
    for method, runs in found.items():
        rates = [run["images_per_second"] for run in runs]
        middle = medians[method]
        print(
            f"| {method} | {middle['images_per_second']:.1f} ({min(rates):.1f} – {max(rates):.1f}) "
            f"| {middle['peak_memory_mib']:.0f} | {middle['memory_before_training_mib']:.0f} |"
        )
    ratios = [
        alone["images_per_second"] / both["images_per_second"]
        for alone, both in zip(found["selection"], found["dual"], strict=True)
    ]
    print(f"\n`dual` takes {statistics.median(ratios):.2f} times as long as `selection` (median of the pairs).")


def measure(method: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Train once in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "twinbud", "train", "--data", str(arguments.data), "--teacher", "dinov2-small"),
            *("--profile", "quick", "--near-duplicates", "ignore", "--fraction", "0.05"),
            *("--min-steps", "0", "--epochs", str(arguments.epochs)),
            *("--image-size", str(arguments.image_size), "--method", method, "--output", f"{folder}/run"),
        ]
        subprocess.run(command, check=True, capture_output=True)
        return json.loads(Path(folder, "run", "metrics.json").read_text())


if __name__ == "__main__":
    main()
