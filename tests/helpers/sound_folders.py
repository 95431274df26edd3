"""Every kind of folder that twinbud writes, small and made when it is needed."""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from helpers.builders import save_images, save_teacher, save_vit_teacher
from helpers.command import SMALL, Answer, train, trained, twinbud
from helpers.stopping import sigterm_at_step
from helpers.studies import save_study
from twinbud.training.train_step import TrainingStep

CALIBRATE = ("--folds", 2, "--coverage", 0.8)
RESUMED = (
    "--tune-teacher", "--tune-epochs", 2, "--tune-min-steps", 0, "--epochs", 2, "--checkpoint-seconds", 0,
    "--recover", "labelled", "--recover-epochs", 1, "--recover-batch-size", 8,
)  # fmt: skip
"""A run with checkpoints of the fine-tuning of the teacher, of recovery and of training."""
STUDY = {"tune_teacher": True, "tune_epochs": 1, "tune_min_steps": 0, "epochs": 1}


class Place:
    """A folder of sound folders, made when they are needed.

    Args:
        path: Where they are made.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.output = path, path / "output"
        self.expected: dict[str, object] = {}
        """What each command gives for its sound folder, as far as it was asked."""

    def copy(self, source: Path) -> Path:
        """A copy to damage, always at the same path; the one before and its output go."""
        folder = self.path / "case" / "folder"
        for path in (folder.parent, self.output):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        return Path(shutil.copytree(source, folder))

    @cached_property
    def images(self) -> Path:
        return save_images(self.path / "images", {"dark": 14, "grey": 14, "light": 14})

    @cached_property
    def elsewhere(self) -> Path:
        return save_images(self.path / "elsewhere", {"dark": 14, "grey": 14, "light": 14}, seed=77)

    @cached_property
    def teacher(self) -> str:
        return save_vit_teacher(self.path / "teacher")

    def _calibrated(self, name: str, images: Path, *words: object) -> Path:
        run = trained(images, self.teacher, self.path / name, "--method", "selection", *words)
        require(twinbud("calibrate", run, *CALIBRATE))
        return run

    @cached_property
    def run(self) -> Path:
        """A run that is calibrated and explained."""
        run = self._calibrated("run", self.images)
        require(twinbud("explain", run))
        return run

    @cached_property
    def twin(self) -> Path:
        """A run on the same images, with the same architecture."""
        return self._calibrated("twin", self.images, "--learning-rate", "5e-3")

    @cached_property
    def other(self) -> Path:
        """A run with other classes."""
        return self._calibrated("other", save_images(self.path / "others", {"cold": 12, "warm": 12}, seed=3))

    def _stopped(self, name: str, teacher: str, *words: object) -> Path:
        with sigterm_at_step(TrainingStep, 13):
            assert train(self.images, teacher, self.path / name, *RESUMED, *words).code == 75
        return self.path / name

    @cached_property
    def stopped(self) -> Path:
        return self._stopped("stopped", self.teacher)

    @cached_property
    def stopped_twin(self) -> Path:
        return self._stopped("stopped-twin", self.teacher, "--seed", 1)

    @cached_property
    def stopped_other(self) -> Path:
        """A run of another architecture."""
        sizes: Any = {"img_size": 28, "patch_size": 7, "embed_dim": 64, "depth": 2, "num_heads": 4}
        large = save_teacher(self.path / "large", "vit_tiny_patch16_224", init_values=1e-5, **sizes)
        return self._stopped("stopped-other", large)

    @cached_property
    def recipe(self) -> tuple[Path, Path]:
        """A recipe, and its images."""
        return save_study(self.path / "study", **STUDY)

    def study_words(self, runs: Path) -> tuple[object, ...]:
        recipe, images = self.recipe
        return ("study", recipe, "--data", f"shades={images}", "--runs", runs, "--workers", 0)

    @cached_property
    def study(self) -> Path:
        runs = self.path / "study" / "runs"
        require(twinbud(*self.study_words(runs)))
        return runs

    @cached_property
    def begun_study(self) -> Path:
        """The study without one of its records, whose run takes its teacher from the cache."""
        runs = Path(shutil.copytree(self.study, self.path / "study" / "begun"))
        record = first_record(runs)
        record.unlink()
        shutil.rmtree(runs / "work" / record.stem)
        return runs

    def resume_words(self, run: Path) -> tuple[object, ...]:
        words = ("train", "--data", self.images, "--teacher", self.teacher, "--output", run)
        return (*words, *SMALL, *RESUMED, "--resume")


def first_record(runs: Path) -> Path:
    return min((runs / "records").iterdir())


def require(answer: Answer) -> Answer:
    assert answer.code == 0, answer.err
    return answer
