"""Training of small networks by several processes, every case of the loss in each of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from helpers.builders import VIT, half_preprocessing, random_model
from helpers.processes import FORK_SERVER
from twinbud.config.schema import TrainingConfig
from twinbud.models.student_pair import StudentPair
from twinbud.tasks.base import Task
from twinbud.tasks.multi_label import MultiLabel
from twinbud.tasks.ordinal import Ordinal
from twinbud.training.execution import Execution
from twinbud.training.fit import LabelledImages, fit
from twinbud.training.processes import Processes
from twinbud.training.two_phase import fit_in_two_phases

NUM_IMAGES, BATCH_SIZE = 10, 4
GRADES = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 2, 2])
FINDINGS = torch.tensor([[1, 0, torch.nan], [0, 0, 0], [1, torch.nan, torch.nan], [0, 1, 0], [torch.nan] * 3] * 2)


@dataclass(frozen=True)
class Case:
    """Settings of a training, and what is asked of its images."""

    settings: dict[str, Any]
    labels_N: torch.Tensor = field(default_factory=lambda: torch.arange(NUM_IMAGES) % 3)
    task: Task | None = None
    bf16: bool = False


CASES = {
    "drop path and clipping": Case({"drop_path": 0.3, "clip_norm": 0.1}),
    "mixup and CutMix": Case({"mixup": 0.4, "cutmix": 1.0}),
    "class weights": Case({"balance": "weights", "label_smoothing": 0.1}, GRADES),
    "sampler, average": Case({"balance": "sampler", "average": 0.9}, GRADES),
    "unknown findings": Case({"balance": "weights"}, FINDINGS, MultiLabel(("a", "b", "c"))),
    "grades": Case({"balance": "weights", "label_smoothing": 0.1}, GRADES, Ordinal(("0", "1", "2"))),
    "cs-kd": Case({"distillation": "cs-kd"}),
    "cs-kd-pair": Case({"distillation": "cs-kd-pair"}),
    "tf-kd": Case({"distillation": "tf-kd"}),
    "tf-kd-reg": Case({"distillation": "tf-kd-reg"}),
    "tf-kd-self": Case({"distillation": "tf-kd-self"}),
    "skd+teacher": Case({"distillation": "skd+teacher"}),
}


@dataclass(frozen=True)
class Trained:
    """The losses and accuracies of the epochs, and all weights."""

    epochs: list[tuple[float, float, float | None, float]]
    weights: dict[str, torch.Tensor]


def trained(case: Case, processes: Processes | None = None) -> Trained:
    """Train for two epochs of batches of 4, 4 and 2 images."""
    outputs = case.task.num_outputs if case.task else 3
    settings: dict[str, Any] = {"temperature": 4.0, "drop_path": 0.0, "learning_rate": 1e-4} | case.settings
    config = TrainingConfig(image_size=28, epochs=2, batch_size=BATCH_SIZE, **settings)
    generator = torch.Generator().manual_seed(0)
    data = LabelledImages(
        images_NCSS=torch.randint(0, 256, (NUM_IMAGES, 3, 28, 28), dtype=torch.uint8, generator=generator),
        labels_N=case.labels_N,
        preprocessing=half_preprocessing(),
        task=case.task,
    )
    student, auxiliary, teacher = (
        random_model("vit_tiny_patch16_224", seed, num_classes=outputs, drop_path_rate=settings["drop_path"], **VIT)
        for seed in (0, 1, 2)
    )
    execution, pair = Execution(bf16=case.bf16, processes=processes), StudentPair(student=student, auxiliary=auxiliary)
    if config.num_phases == 2:
        history = fit_in_two_phases(pair, data, config, execution)
    else:
        history = fit(pair, data, config, execution, teacher=teacher)
    epochs = [(each.loss, each.loss_ce or 0.0, each.loss_skd, each.accuracy or 0.0) for each in history.epochs]
    weights = {f"student.{name}": tensor for name, tensor in student.state_dict().items()}
    return Trained(epochs, weights | {f"auxiliary.{name}": tensor for name, tensor in auxiliary.state_dict().items()})


def train_together(count: int, folder: Path) -> list[dict[str, Trained]]:
    """Train every case in ``count`` processes; the results of each process."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started = [FORK_SERVER.Process(target=_train_all, args=(rank, count, store.port, folder)) for rank in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return [{name: _read(folder / f"{name}-{rank}") for name in CASES} for rank in range(count)]


def _train_all(rank: int, count: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    for name, case in CASES.items():
        result = trained(case, Processes(rank, count))
        save_file(result.weights, folder / f"{name}-{rank}.safetensors")
        (folder / f"{name}-{rank}.json").write_text(json.dumps(result.epochs))
    dist.destroy_process_group()


def _read(path: Path) -> Trained:
    epochs = [tuple(epoch) for epoch in json.loads(path.with_suffix(".json").read_text())]
    return Trained(epochs, load_file(path.with_suffix(".safetensors")))
