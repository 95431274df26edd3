"""The plain PyTorch loop that twinbud is measured against: the same mathematics, as people write it.

A Dataset that decodes with PIL, torchvision's transforms, a DataLoader with two workers, AdamW, the moving average
parameter by parameter, ``loss.item()`` each step. ``make bench`` starts it; by hand, see ``task.Task`` for the options.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from rival import NUM_WORKERS, ImageFiles, Recorder, open_student_pair, settings
from task import Task, write_result
from twinbud.config.schema import TrainingConfig
from twinbud.training.schedule import learning_rate_at, peak_learning_rate


def main() -> None:
    """Train, test once, and write the measurements."""
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
    task = Task.from_command_line(__doc__)
    training = settings(task)
    torch.manual_seed(training.seed)
    student_pair, student_spec = open_student_pair(task, len(ImageFiles(task, "train", (0,), (1,)).classes))
    train = ImageFiles(task, "train", student_spec.mean, student_spec.std)
    test = ImageFiles(task, "test", student_spec.mean, student_spec.std)
    loader = DataLoader(train, training.batch_size, shuffle=True, num_workers=NUM_WORKERS)
    student, auxiliary = student_pair.student, student_pair.auxiliary
    optimizer = make_optimizer(student, training)
    num_steps = len(loader) * training.epochs
    peak = peak_learning_rate(training.learning_rate, training.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            learning_rate_at(
                min(step, num_steps - 1),
                num_steps=num_steps,
                warmup=training.warmup,
                peak=peak,
                final=training.final_learning_rate,
            )
            / peak
        ),
    )
    recorder, running = Recorder(task), 0.0
    for _ in range(training.epochs):
        student.train()
        running = 0.0
        for batch in loader:
            images, labels = batch["pixel_values"].to(task.device), batch["labels"].to(task.device)
            loss = train_step(student, auxiliary, optimizer, images, labels, training)
            schedule.step()
            running += loss.item() * len(labels)
        recorder.epoch_ended()
    result = recorder.trained()
    accuracy = test_accuracy(student, DataLoader(test, 64, num_workers=NUM_WORKERS), task.device)
    save_file(student.state_dict(), task.result.with_suffix(".safetensors"))
    write_result(task, result | {"num_train": len(train), "accuracy": accuracy, "loss": running / len(train)})


def make_optimizer(student: nn.Module, training: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with decay on parameters of two dimensions or more, timm's exceptions left out."""
    exempt = student.no_weight_decay() if hasattr(student, "no_weight_decay") else set()  # type: ignore[operator]
    decayed, others = [], []
    for name, parameter in student.named_parameters():
        if parameter.ndim >= 2 and name not in exempt:
            decayed.append(parameter)
        else:
            others.append(parameter)
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak_learning_rate(training.learning_rate, training.batch_size))


def train_step(
    student: nn.Module,
    auxiliary: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    training: TrainingConfig,
) -> torch.Tensor:
    """One step of eqs. 1-7; returns the loss."""
    assert training.temperature != "auto"
    temperature = training.temperature
    targets = None
    with torch.autocast(images.device.type, torch.bfloat16, enabled=training.precision == "bf16"):
        logits = student(images)
        if auxiliary is not None:
            with torch.no_grad():
                targets = auxiliary(images)
    if training.precision == "bf16":
        logits = logits.float()
        targets = None if targets is None else targets.float()
    loss = F.cross_entropy(logits, labels)
    if targets is not None:
        log_probabilities = F.log_softmax(logits / temperature, dim=1)
        softened = F.softmax(targets / temperature, dim=1)
        distillation = F.kl_div(log_probabilities, softened, reduction="batchmean")
        loss = training.alpha * loss + (1 - training.alpha) * temperature**2 * distillation
    optimizer.zero_grad()
    loss.backward()
    if training.clip_norm is not None:
        nn.utils.clip_grad_norm_(student.parameters(), training.clip_norm)
    optimizer.step()
    if auxiliary is not None:
        follow_one_by_one(auxiliary, student, training.beta)
    return loss.detach()


@torch.no_grad()
def follow_one_by_one(auxiliary: nn.Module, student: nn.Module, beta: float) -> None:
    """The moving average of eq. 7, parameter by parameter."""
    for behind, ahead in zip(auxiliary.parameters(), student.parameters(), strict=True):
        behind.mul_(beta).add_(ahead, alpha=1 - beta)


@torch.no_grad()
def test_accuracy(student: nn.Module, loader: DataLoader[dict[str, torch.Tensor]], device: str) -> float:
    """Share of images classified rightly."""
    student.eval()
    correct = count = 0
    for batch in loader:
        predicted = student(batch["pixel_values"].to(device)).argmax(dim=1).cpu()
        correct += (predicted == batch["labels"]).sum().item()
        count += len(predicted)
    return correct / count


if __name__ == "__main__":
    main()
