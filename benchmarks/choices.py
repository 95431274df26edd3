"""What twinbud chooses between: eager or compiled steps, weights contiguous or channels last.

    python benchmarks/choices.py [--models vit,convnext] [--image-size 112] [--precision bf16] [--threads 1]

Medians of `dual` steps of 32 random images, in turns in one process; the first compiled step is timed apart, since
`--compile auto` weighs it against what the others save. Nothing else should run on the machine. About four minutes.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from limit import NUM_CLASSES, medians
from material import TEACHERS, TITLES, select_random
from twinbud.config.loading import stage_config
from twinbud.config.profiles import PROFILES
from twinbud.config.schema import TrainingConfig, resolve
from twinbud.models.selection_io import load_selection
from twinbud.models.student_pair import StudentPair, build_student_pair
from twinbud.training.amp import cpu_threads, unfused_attention_in_bf16
from twinbud.training.compile import EAGER, Compilation
from twinbud.training.fit import objective
from twinbud.training.train_step import TrainingStep

INDUCTOR = Compilation(inductor=True, graphs=False, reason="measured")
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def main() -> None:
    """Measure and print a Markdown table."""
    options = parse()
    print("| model | weights | seconds a step, eager | compiled | seconds to compile | earned back after |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, cpu_threads(options.threads):
        for model in options.models:
            selected = select_random(Path(folder), model)
            for line in rows(model, selected, options):
                print(line, flush=True)


def rows(model: str, selected: Path, options: argparse.Namespace) -> list[str]:
    """One row for each way the weights lie in memory; a ViT has no use for channels last."""
    selection = load_selection(selected)
    training = stage_config(TrainingConfig, PROFILES["quick"] | {"image_size": options.image_size, "profile": "quick"})
    family = selection.student_spec.family
    training = resolve(training, temperature=family.temperature, drop_path=family.drop_path)
    student_pair = build_student_pair(selection, image_size=options.image_size, num_classes=NUM_CLASSES)
    bf16, side, batch = options.precision == "bf16", options.image_size, training.batch_size
    images = torch.randn(batch, 3, side, side)
    labels = torch.arange(batch) % NUM_CLASSES

    def taker(memory_format: torch.memory_format, compilation: Compilation) -> Callable[[], object]:
        assert student_pair.auxiliary is not None
        student, auxiliary = copy.deepcopy(student_pair.student), copy.deepcopy(student_pair.auxiliary)
        pair = StudentPair(
            student=student.to(memory_format=memory_format).train(), auxiliary=auxiliary.to(memory_format=memory_format)
        )
        step = TrainingStep(
            pair, objective(training, bf16), weight_decay=0.05, compilation=compilation, batch_size=batch
        )
        return lambda: step(images, labels, 1e-6)

    formats = FORMATS if model == "convnext" else {"contiguous": torch.contiguous_format}
    found = []
    with unfused_attention_in_bf16((student_pair.student, student_pair.auxiliary), images.device, bf16=bf16):
        for name, memory_format in formats.items():
            ways = {"eager": taker(memory_format, EAGER), "compiled": taker(memory_format, INDUCTOR)}
            start = time.perf_counter()
            ways["compiled"]()
            compiling = time.perf_counter() - start
            seconds = medians(ways, "cpu")
            saved = seconds["eager"] - seconds["compiled"]
            earned = f"{compiling / saved:,.0f} steps" if saved > 0 else "never"
            found.append(
                f"| {TITLES[model]} | {name} | {seconds['eager']:.3f} | {seconds['compiled']:.3f} | "
                f"{compiling:.0f} | {earned} |"
            )
    return found


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(TEACHERS))
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="bf16")
    parser.add_argument("--threads", type=int, default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
