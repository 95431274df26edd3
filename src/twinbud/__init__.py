"""Small, trustworthy medical-image classifiers grown from large pretrained ones.

The stages as plain functions, in the order in which a run takes them:

- ``read_index``, ``load_image_store``, ``make_split``: images come in (docs/data.md).
- ``read_teacher_card``, ``select``: two different sub-networks are cut out of a teacher.
- ``build_student_pair``, ``build_baseline``: S and S′, or a randomly initialised student.
- ``recover``: S and S′ get back what being cut out of the teacher broke, without labels; beyond the paper.
- ``fit``: S is trained while S′ gives it soft targets; ``fit_in_two_phases`` where S′ is trained first.
- ``evaluate``: metrics with intervals.
- ``train``, ``evaluate_run``, ``predict``: whole jobs, as the command line does them.

``twinbud.config.schema`` explains every setting; ``run_config`` makes a whole run's from a dictionary.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinbud.config.loading import run_config
    from twinbud.config.schema import DataConfig, ModelConfig, RecoveryConfig, RunConfig, TrainingConfig
    from twinbud.core.errors import TwinbudError
    from twinbud.data.image_store import load_image_store
    from twinbud.data.source import read_index
    from twinbud.data.split import make_split
    from twinbud.evaluation.metrics import evaluate
    from twinbud.models.selection_io import load_selection, save_selection, select
    from twinbud.models.student_pair import build_baseline, build_student_pair
    from twinbud.models.teacher import open_teacher, read_teacher_card
    from twinbud.recovery.refit_batches import UnlabelledImages
    from twinbud.recovery.stage import recover
    from twinbud.runs.inference import evaluate_run, predict
    from twinbud.runs.pipeline import train
    from twinbud.training.fit import LabelledImages, fit
    from twinbud.training.two_phase import fit_in_two_phases

_HOMES = {
    "TwinbudError": "core.errors",
    "DataConfig": "config.schema",
    "ModelConfig": "config.schema",
    "RecoveryConfig": "config.schema",
    "TrainingConfig": "config.schema",
    "RunConfig": "config.schema",
    "run_config": "config.loading",
    "read_index": "data.source",
    "load_image_store": "data.image_store",
    "make_split": "data.split",
    "read_teacher_card": "models.teacher",
    "open_teacher": "models.teacher",
    "select": "models.selection_io",
    "save_selection": "models.selection_io",
    "load_selection": "models.selection_io",
    "build_student_pair": "models.student_pair",
    "build_baseline": "models.student_pair",
    "UnlabelledImages": "recovery.refit_batches",
    "recover": "recovery.stage",
    "LabelledImages": "training.fit",
    "fit": "training.fit",
    "fit_in_two_phases": "training.two_phase",
    "evaluate": "evaluation.metrics",
    "train": "runs.pipeline",
    "evaluate_run": "runs.inference",
    "predict": "runs.inference",
}
"""Where each public name lives. It is imported when it is first used, so that ``twinbud --help`` needs no torch."""

__all__ = [
    "DataConfig",
    "LabelledImages",
    "ModelConfig",
    "RecoveryConfig",
    "RunConfig",
    "TrainingConfig",
    "TwinbudError",
    "UnlabelledImages",
    "build_baseline",
    "build_student_pair",
    "evaluate",
    "evaluate_run",
    "fit",
    "fit_in_two_phases",
    "load_image_store",
    "load_selection",
    "make_split",
    "open_teacher",
    "predict",
    "read_index",
    "read_teacher_card",
    "recover",
    "run_config",
    "save_selection",
    "select",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'twinbud' has no attribute '{name}'")
    return getattr(import_module(f"twinbud.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
