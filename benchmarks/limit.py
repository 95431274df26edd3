"""How fast a step could be: f, the share of S's forward without gradient, and the machine's matrix products.

All in one process and in turns; medians. Options as ``task.Task``; it trains on random pixels.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rival import open_student_pair, settings
from task import METHODS, Task, write_result
from twinbud.data.augment import Normalization, apply_views, draw_views
from twinbud.evaluation.predict import predict_logits
from twinbud.models.student_pair import StudentPair
from twinbud.training.amp import unfused_attention_in_bf16
from twinbud.training.fit import objective
from twinbud.training.train_step import TrainingStep

NUM_CLASSES = 4
SECONDS = 20.0
"""About how long the turns of one model last."""
Shapes = Counter[tuple[int, int, int]]
"""How often a product (rows × inner) @ (inner × columns) occurs in one forward."""


def main() -> None:
    """Measure and write."""
    task = Task.from_command_line(__doc__)
    training = settings(task)
    student_pair, student_spec = open_student_pair(task, NUM_CLASSES)
    assert student_pair.auxiliary is not None, "the limit is measured on the student pairs of `dual`"
    bf16 = task.precision == "bf16"
    side, batch = task.image_size, training.batch_size
    image_store = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=task.device)
    labels = torch.arange(batch, device=task.device) % NUM_CLASSES
    views = draw_views(0, 1, batch, crop_scale=training.crop_scale, flip=training.flip).to(image_store.device)
    steps = {
        method: TrainingStep(
            student_pair if method == "dual" else StudentPair(student=student_pair.student, auxiliary=None),
            objective(training, bf16),
            weight_decay=training.weight_decay,
        )
        for method in METHODS
    }

    def augmented() -> torch.Tensor:
        return Normalization.on(image_store.device, student_spec.mean, student_spec.std)(
            apply_views(image_store, views)
        )

    images = augmented()

    def forward() -> None:
        with torch.no_grad(), torch.autocast(task.device, torch.bfloat16, enabled=bf16):
            student_pair.student.eval()(images)

    def step(method: str) -> None:
        student_pair.student.train()
        steps[method](augmented(), labels, 1e-6)

    jobs = {"selection": lambda: step("selection"), "dual": lambda: step("dual"), "forward": forward, "see": augmented}
    with unfused_attention_in_bf16(
        (student_pair.student, student_pair.auxiliary), image_store.device, bf16=bf16
    ):  # as in training
        seconds = medians(jobs, task.device)
    with FlopCounterMode(display=False) as counted:
        step("selection")
    with FlopCounterMode(display=False) as counted_forward:
        forward()
    shapes = linear_shapes(student_pair.student, images)
    test = torch.randint(0, 256, (256, 3, side, side), dtype=torch.uint8)
    test_seconds = medians(
        {"test": lambda: predict_logits(student_pair.student, test, preprocessing=student_spec.preprocessing(side))},
        task.device,
        3,
    )["test"]
    write_result(
        task,
        {
            "step_seconds": seconds["selection"],
            "dual_step_seconds": seconds["dual"],
            "forward_seconds": seconds["forward"],
            "augmentation_seconds": seconds["see"],
            "f": seconds["forward"] / seconds["selection"],
            "gflop_step": {
                "selection": counted.get_total_flops() / 1e9,
                "dual": (counted.get_total_flops() + counted_forward.get_total_flops()) / 1e9,
            },
            "batch": batch,
            "gflops": {
                "float32": matrix_rate(shapes, torch.float32, task.device),
                "bf16": matrix_rate(shapes, torch.bfloat16, task.device),
            },
            "auxiliary_mib": sum(t.numel() * t.element_size() for t in student_pair.auxiliary.state_dict().values())
            / 2**20,
            "test_images_per_second": len(test) / test_seconds,
        },
    )


def medians(jobs: Mapping[str, Callable[[], object]], device: str, repeats: int | None = None) -> dict[str, float]:
    """Median seconds of each job, taken in turns after two turns to warm up; as many as fit into ``SECONDS``."""
    for job in jobs.values():
        job()
    once = sum(_seconds(job, device) for job in jobs.values())
    repeats = repeats or min(101, max(7, math.ceil(SECONDS / once)))
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            taken[name].append(_seconds(job, device))
    return {name: statistics.median(values) for name, values in taken.items()}


def _seconds(job: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    job()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def linear_shapes(model: nn.Module, images: torch.Tensor) -> Shapes:
    """The matrix products of a forward's linear layers."""
    shapes: Shapes = Counter()

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, nn.Linear)
        rows = inputs[0].numel() // module.in_features
        shapes[rows, module.in_features, module.out_features] += 1

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, nn.Linear)]
    model(images)
    for hook in hooks:
        hook.remove()
    return shapes


def matrix_rate(shapes: Shapes, dtype: torch.dtype, device: str) -> float:
    """GFLOP/s of those products, each as often as it occurs."""
    operations = seconds = 0.0
    for (rows, inner, columns), count in shapes.items():
        left = torch.randn(rows, inner, dtype=dtype, device=device)
        weight = torch.randn(columns, inner, dtype=dtype, device=device)
        taken = medians({"product": lambda left=left, weight=weight: F.linear(left, weight)}, device, 15)["product"]
        operations += 2.0 * rows * inner * columns * count
        seconds += taken * count
    return operations / seconds / 1e9


if __name__ == "__main__":
    main()
