"""Small, trustworthy medical-image classifiers grown from large pretrained ones.

The stages as plain functions, in the order in which a run takes them:

- ``read_catalog``, ``load_pixels``, ``make_split``: images come in (docs/data.md).
- ``read_teacher_card``, ``select``: two different sub-networks are cut out of a teacher.
- ``build_twins``, ``build_baseline``: S and S′, or a randomly initialised student.
- ``recover``: S and S′ get back what being cut out of the teacher broke, without labels; beyond the paper.
- ``fit``: S is trained while S′ gives it soft targets; ``fit_in_two_phases`` where S′ is trained first.
- ``evaluate``: metrics with intervals.
- ``train``, ``evaluate_run``, ``predict``: whole jobs, as the command line does them.

``twinbud.config`` explains every setting; ``run_config`` makes a whole run's from a dictionary.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinbud.apply import evaluate_run, predict
    from twinbud.config import DataConfig, ModelConfig, RecoveryConfig, RunConfig, TrainingConfig
    from twinbud.data.catalog import read_catalog
    from twinbud.data.pixels import load_pixels
    from twinbud.data.split import make_split
    from twinbud.errors import TwinbudError
    from twinbud.evaluation.metrics import evaluate
    from twinbud.models.selected import load_selection, save_selection, select
    from twinbud.models.teacher import open_teacher, read_teacher_card
    from twinbud.models.twins import build_baseline, build_twins
    from twinbud.pipeline import train
    from twinbud.recovery.looks import UnlabelledImages
    from twinbud.recovery.stage import recover
    from twinbud.settings import run_config
    from twinbud.training.beforehand import fit_in_two_phases
    from twinbud.training.loop import LabelledImages, fit

_HOMES = {
    "TwinbudError": "errors",
    "DataConfig": "config",
    "ModelConfig": "config",
    "RecoveryConfig": "config",
    "TrainingConfig": "config",
    "RunConfig": "config",
    "run_config": "settings",
    "read_catalog": "data.catalog",
    "load_pixels": "data.pixels",
    "make_split": "data.split",
    "read_teacher_card": "models.teacher",
    "open_teacher": "models.teacher",
    "select": "models.selected",
    "save_selection": "models.selected",
    "load_selection": "models.selected",
    "build_twins": "models.twins",
    "build_baseline": "models.twins",
    "UnlabelledImages": "recovery.looks",
    "recover": "recovery.stage",
    "LabelledImages": "training.loop",
    "fit": "training.loop",
    "fit_in_two_phases": "training.beforehand",
    "evaluate": "evaluation.metrics",
    "train": "pipeline",
    "evaluate_run": "apply",
    "predict": "apply",
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
    "build_twins",
    "evaluate",
    "evaluate_run",
    "fit",
    "fit_in_two_phases",
    "load_pixels",
    "load_selection",
    "make_split",
    "open_teacher",
    "predict",
    "read_catalog",
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
