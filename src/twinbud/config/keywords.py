"""The settings of a run as typed keywords of ``twinbud.train`` and ``teach``; tests keep them equal to the schema."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from twinbud.config.data_config import NearDuplicates, Subset
from twinbud.config.reading import Axis
from twinbud.config.recovery import Recover, RecoverMethod, RecoverMetric, RecoverStream, RecoverTarget, Switch
from twinbud.config.schema import (
    Attention,
    Auto,
    Auxiliary,
    ClassifierStart,
    Compile,
    CrossEntropyTemperature,
    Device,
    Distillation,
    Family,
    LayerScale,
    Method,
    Precision,
    Profile,
    Rule,
)
from twinbud.config.task import Aggregate, Balance, TaskChoice


class Settings(TypedDict, total=False):
    """All settings but ``data`` and ``teacher``; ``twinbud train --help`` and the schema explain each."""

    task: TaskChoice
    label_columns: str | None
    classes: str | None
    aggregate: Aggregate
    data_root: str | Path | None
    image_column: str
    label_column: str
    patient_column: str
    split_column: str
    split: str | Path | None
    split_seed: int
    develop: bool
    split_duplicates: bool
    near_duplicates: NearDuplicates
    fraction: float
    subset: Subset
    window: str
    frames: str
    axis: Axis
    volume: int | None
    patient_salt: str | Path | None
    skip_broken: bool
    max_megapixels: float
    selected: str | Path | None
    student: str
    method: Method
    family: Family
    rule: Rule
    attention: Attention
    auxiliary: Auxiliary
    swap_roles: bool
    layer_scale: LayerScale
    profile: Profile
    image_size: int
    classifier_start: ClassifierStart
    epochs: int
    min_steps: int
    batch_size: int
    learning_rate: float
    final_learning_rate: float
    warmup: float
    weight_decay: float
    layer_decay: float
    clip_norm: float | None
    distillation: Distillation
    alpha: float
    beta: float
    average: float | None
    temperature: float | Auto
    ce_temperature: CrossEntropyTemperature
    drop_path: float | Auto
    crop_scale: float
    flip: float
    rotate: float
    brightness: float
    contrast: float
    cutout: float
    mixup: float
    cutmix: float
    label_smoothing: float
    balance: Balance
    precision: Precision
    compile: Compile
    seed: int
    evaluate_every: int | None
    device: Device
    threads: int | None
    tune_teacher: bool
    tune_epochs: int
    tune_min_steps: int
    tune_learning_rate: float
    tune_layer_decay: float
    recover: Recover
    recover_method: RecoverMethod
    recover_stream: RecoverStream
    recover_metric: RecoverMetric
    recover_refit: Switch
    recover_classifier: Switch
    recover_views: int
    recover_memory: float
    recover_epochs: int
    recover_batch_size: int
    recover_learning_rate: float
    recover_target: RecoverTarget
    recover_blocks: bool


class TeachSettings(TypedDict, total=False):
    """The settings of ``config.teaching`` but ``data``; ``twinbud teach --help`` explains each."""

    data_root: str | Path | None
    image_column: str
    label_column: str
    patient_column: str
    split_column: str
    split: str | Path | None
    near_duplicates: NearDuplicates
    window: str
    frames: str
    axis: Axis
    volume: int | None
    patient_salt: str | Path | None
    skip_broken: bool
    max_megapixels: float
    image_size: int
    epochs: int
    min_steps: int
    batch_size: int
    learning_rate: float
    final_learning_rate: float
    warmup: float
    weight_decay: float
    clip_norm: float | None
    drop_path: float | Auto
    crop_scale: float
    flip: float
    rotate: float
    brightness: float
    contrast: float
    cutout: float
    precision: Precision
    seed: int
    device: Device
    threads: int | None
