"""Hugging Face's Trainer on the same student pairs, images, batch, precision, schedule and number of test passes.

A thin module returns ``{"loss", "logits"}``; in `dual` a callback moves S′ after each step. ``make bench`` starts it;
by hand, see ``task.Task`` for the options.
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from plain_loop import follow_one_by_one
from rival import NUM_WORKERS, ImageFiles, Recorder, open_student_pair, settings
from task import Task, write_result
from twinbud.config.schema import TrainingConfig
from twinbud.models.student_pair import StudentPair
from twinbud.training.schedule import peak_learning_rate


class Classifier(nn.Module):
    """S, and in `dual` S′, with the losses of eqs. 1-5."""

    def __init__(self, student_pair: StudentPair, training: TrainingConfig) -> None:
        super().__init__()
        self.student, self.auxiliary, self.settings = student_pair.student, student_pair.auxiliary, training

    def train(self, mode: bool = True) -> Classifier:
        """S′ never trains."""
        super().train(mode)
        if self.auxiliary is not None:
            self.auxiliary.eval()
        return self

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """What Trainer asks of a model."""
        logits = self.student(pixel_values)
        loss = F.cross_entropy(logits.float(), labels)
        if self.auxiliary is not None and self.training:
            with torch.no_grad():
                targets = self.auxiliary(pixel_values)
            temperature, alpha = self.settings.temperature, self.settings.alpha
            assert temperature != "auto"
            log_probabilities = F.log_softmax(logits.float() / temperature, dim=1)
            softened = F.softmax(targets.float() / temperature, dim=1)
            distillation = F.kl_div(log_probabilities, softened, reduction="batchmean")
            loss = alpha * loss + (1 - alpha) * temperature**2 * distillation
        return {"loss": loss, "logits": logits}


class Watcher(TrainerCallback):
    """Measures each epoch, and moves S′ after each step."""

    def __init__(self, task: Task, model: Classifier) -> None:
        self.task, self.model = task, model
        self.recorder: Recorder | None = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """After everything is loaded."""
        del args, kwargs
        self.recorder = Recorder(self.task)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Eq. 7."""
        del args, kwargs
        if self.model.auxiliary is not None:
            follow_one_by_one(self.model.auxiliary, self.model.student, self.model.settings.beta)

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """The clock."""
        del args, kwargs
        assert self.recorder is not None
        self.recorder.epoch_ended()


def main() -> None:
    """Train, test once, save, and write the measurements."""
    task = Task.from_command_line(__doc__)
    training = settings(task)
    student_pair, student_spec = open_student_pair(task, len(ImageFiles(task, "train", (0,), (1,)).classes))
    train = ImageFiles(task, "train", student_spec.mean, student_spec.std)
    test = ImageFiles(task, "test", student_spec.mean, student_spec.std)
    model = Classifier(student_pair, training)
    watcher = Watcher(task, model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=arguments(task, training, folder),
            train_dataset=train,
            eval_dataset=test,
            callbacks=[watcher],
        )
        trainer.train()
        assert watcher.recorder is not None
        result = watcher.recorder.trained()
        predictions = trainer.predict(test)
        trainer.save_model(folder)
    correct = np.argmax(np.asarray(predictions.predictions), axis=1) == np.asarray(predictions.label_ids)
    loss = next(entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry)
    write_result(task, result | {"num_train": len(train), "accuracy": float(correct.mean()), "loss": loss})


def arguments(task: Task, training: TrainingConfig, folder: str) -> TrainingArguments:
    """The recipe in Trainer's words."""
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=64,
        num_train_epochs=training.epochs,
        learning_rate=peak_learning_rate(training.learning_rate, training.batch_size),
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": training.final_learning_rate},
        warmup_steps=training.warmup,
        weight_decay=training.weight_decay,
        max_grad_norm=training.clip_norm or 0.0,
        bf16=task.precision == "bf16",
        use_cpu=task.device == "cpu",
        dataloader_num_workers=NUM_WORKERS,
        dataloader_pin_memory=task.device == "cuda",
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        seed=training.seed,
    )


if __name__ == "__main__":
    main()
