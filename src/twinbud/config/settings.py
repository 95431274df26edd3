"""All settings of the schema by name."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any, NamedTuple

from pydantic.fields import FieldInfo

from twinbud.config.data_config import DataConfig
from twinbud.config.fields import hints_of
from twinbud.config.recovery import RecoveryConfig
from twinbud.config.schema import ModelConfig, TrainingConfig
from twinbud.config.tuning import TuningConfig

Stage = type[DataConfig] | type[ModelConfig] | type[TuningConfig] | type[RecoveryConfig] | type[TrainingConfig]
STAGES: dict[str, Stage] = {
    "data": DataConfig,
    "model": ModelConfig,
    "tuning": TuningConfig,
    "recovery": RecoveryConfig,
    "training": TrainingConfig,
}


class Setting(NamedTuple):
    """One field of one stage: its stage, its type, its default in the schema, and its help."""

    stage: str
    hint: Any
    default: Any
    help: str


@cache
def all_settings() -> dict[str, Setting]:
    """Return all settings by name, stage by stage."""
    settings = {}
    for stage, kind in STAGES.items():
        for field in fields(kind):
            info = field.default
            assert isinstance(info, FieldInfo)
            settings[field.name] = Setting(stage, hints_of(kind)[field.name], info.default, info.description or "")
    return settings
