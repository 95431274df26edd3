"""Every setting, one frozen dataclass a stage, with its default, its range and what it means.

The defaults are the `paper` profile (docs/method.md says what the paper leaves open and what was chosen).
`PROFILES` holds what the others change. Field names are the command line's options (`image_size` is
`--image-size`) and the keys of a YAML file, so each is unique across the stages. The resolved settings are
saved with each run as `config.yaml`, which `--config` reads back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from twinbud.core.errors import TwinbudError, unknown_choice

Method = Literal["dual", "selection", "timm", "xavier", "kaiming"]
Auxiliary = Literal["other", "copy", "frozen", "none"]
Distillation = Literal["skd", "cs-kd", "cs-kd-pair", "tf-kd", "tf-kd-self", "tf-kd-reg"]
Rule = Literal["uniform", "consecutive", "random", "random-inconsistent"]
Attention = Literal["interleaved", "heads"]
Subset = Literal["stratified", "plain"]
Precision = Literal["auto", "float32", "bf16"]
Compile = Literal["auto", "on", "off"]
CrossEntropyTemperature = Literal["one", "tau"]
LayerScale = Literal["one", "timm"]
Recover = Literal["none", "labelled", "unlabelled"]
RecoverTarget = Literal["own", "all"]
Refit = Literal["on", "off"]
Device = Literal["auto", "cpu", "cuda"]
Profile = Literal["paper", "quick", "best"]
Auto = Literal["auto"]

MAX_IMAGE_SIZE = 4096
"""Pixels a side; no classifier takes larger images, and who asks for more asks for memory."""

_MOST_GIB = 4096

_APART_FROM_TEACHER: tuple[Distillation, ...] = ("tf-kd-self", "tf-kd-reg")
"""Variants whose targets come from a trained copy of S or from a formula: the teacher gives them no S′."""


def _doc(default: Any, text: str) -> Any:
    """A field with its default and the sentence that the command line shows for it."""
    return field(default=default, metadata={"help": text})


def _choices_of(annotation: str) -> tuple[str, ...]:
    return get_args(globals()[annotation]) if annotation in globals() else ()


def _require(condition: bool, name: str, expected: str, value: object) -> None:
    if not condition:
        raise TwinbudError(expected, got=repr(value), where=f"--{name.replace('_', '-')}")


class _Settings:
    """Checks shared by all stages: a choice is one of its words, and a number is finite."""

    def __post_init__(self) -> None:
        for setting in fields(self):  # type: ignore[arg-type]
            choices = _choices_of(str(setting.type))
            value = getattr(self, setting.name)
            if choices and value not in choices:
                raise unknown_choice(f"--{setting.name.replace('_', '-')}", value, choices)
            if isinstance(value, float):
                _require(math.isfinite(value), setting.name, "a finite number", value)
        self._check()

    def _check(self) -> None:
        """Raise TwinbudError for a value out of its range."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(_Settings):
    """Which images, and how they are divided."""

    data: str = _doc("phantom", "Folder of class folders, a CSV, or 'phantom' (the embedded generated set).")
    image_column: str = _doc("image_path", "CSV column with the image path, relative to the CSV.")
    label_column: str = _doc("label", "CSV column with the class name.")
    patient_column: str = _doc("patient_id", "CSV column with the patient; splits are patient-disjoint.")
    split_column: str = _doc("split", "CSV column with train, val or test.")
    split: Path | None = _doc(None, "split.csv of an earlier run, to be used again.")
    split_seed: int = _doc(0, "Seed of the 80/20 split.")
    develop: bool = _doc(
        False, "Keep the test part closed: divide the training part again, 80/20, and measure on that fifth."
    )
    split_duplicates: bool = _doc(False, "Let identical images fall on both sides (the plain random split).")
    fraction: float = _doc(1.0, "Share of the training part whose labels are used, in (0, 1].")
    subset: Subset = _doc("stratified", "How that share is drawn: at least one a class, or plainly.")
    skip_broken: bool = _doc(False, "Leave out images that cannot be read, and list them.")
    max_megapixels: float = _doc(36.0, "Refuse an image with more pixels than this, before decoding it.")

    def _check(self) -> None:
        _require(bool(self.data), "data", "a folder, a CSV or 'phantom'", self.data)
        _require(0 < self.fraction <= 1, "fraction", "a share in (0, 1]", self.fraction)
        _require(self.max_megapixels > 0, "max_megapixels", "a number above 0", self.max_megapixels)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(_Settings):
    """Which teacher, which student, and how the weights of S and S′ are selected."""

    teacher: str | None = _doc(None, "dinov2-small, a timm name, ARCHITECTURE@FILE.safetensors or local-dir:FOLDER.")
    selected: Path | None = _doc(
        None, "Output of 'twinbud select', in place of teacher, student, rule, attention and roles."
    )
    student: str = _doc("half", "'half' the teacher, or a timm name of the same family.")
    method: Method = _doc(
        "dual", "The paper's method, or a baseline: selection CM1, timm CM2, xavier CM3, kaiming CM4."
    )
    rule: Rule = _doc("uniform", "Which elements of each width S and S′ take.")
    attention: Attention = _doc("interleaved", "Cut attention as one axis, or by whole heads.")
    auxiliary: Auxiliary = _doc(
        "other", "S′: from the other subset, a copy of S, frozen at the other subset, or none (then L = L_ce)."
    )
    swap_roles: bool = _doc(False, "Exchange the subsets of S and S′ (Table 5).")
    layer_scale: LayerScale = _doc("one", "LayerScale of CM2-CM4 at the start: 1, or timm's own.")

    def _check(self) -> None:
        if self.teacher is None and self.selected is None:
            raise TwinbudError(
                "a teacher", got="none", where="--teacher", fix="Give --teacher dinov2-small, or --selected DIR"
            )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(_Settings):
    """How S is trained; equations and sections are those of arXiv 2508.20461."""

    profile: Profile = _doc(
        "paper", "Defaults of the paper's run, of a quick one for a CPU, or of what we recommend; as --config's."
    )
    image_size: int = _doc(224, "Side in pixels to which images are resized, proportions not kept.")
    epochs: int = _doc(300, "Passes over the labelled images.")
    min_steps: int = _doc(0, "Add epochs until at least this many optimiser steps are planned.")
    batch_size: int = _doc(32, "Images a step; the last, short batch is kept.")
    learning_rate: float = _doc(1.25e-4, "Peak, at batch 32; scaled linearly with the batch size.")
    final_learning_rate: float = _doc(1e-6, "Where the cosine ends.")
    warmup: float = _doc(1 / 6, "Share of the steps in which the learning rate rises linearly.")
    weight_decay: float = _doc(0.05, "AdamW's, on parameters of two dimensions or more.")
    layer_decay: float = _doc(1.0, "Factor of the learning rate from a layer to the one before it, in (0, 1].")
    clip_norm: float | None = _doc(None, "Largest gradient norm; none: no clipping.")
    distillation: Distillation = _doc("skd", "Soft targets of S: those of S′, or a variant (Table 6, docs/method.md).")
    alpha: float = _doc(0.6, "Weight of cross-entropy against self-distillation (eq. 5).")
    beta: float = _doc(0.9, "Smoothing of S′, the moving average of S (eq. 7).")
    temperature: float | Auto = _doc("auto", "τ of eqs. 1-3; auto: 4 for ViT, 3 for ConvNeXt.")
    ce_temperature: CrossEntropyTemperature = _doc("one", "Softmax of eq. 4 at temperature 1, or at τ (its letter).")
    drop_path: float | Auto = _doc("auto", "Stochastic depth; auto: 0 for ViT, 0.1 for ConvNeXt.")
    crop_scale: float = _doc(0.8, "Smallest area of the random resized crop, in (0, 1].")
    flip: float = _doc(0.5, "Probability of a horizontal flip.")
    precision: Precision = _doc("auto", "float32, bf16 autocast, or bf16 where this machine is faster with it.")
    compile: Compile = _doc("auto", "torch.compile, and CUDA graphs on a GPU; auto: where the planned steps repay it.")
    seed: int = _doc(0, "Sampling of the labelled subset, heads, order, augmentation, drop path, selection.")
    evaluate_every: int | None = _doc(None, "Also test S every N epochs; the last epoch stays the result.")
    device: Device = _doc("auto", "Where to train; auto: the GPU if there is one.")
    threads: int | None = _doc(None, "CPU threads; none: PyTorch's choice.")

    @property
    def num_phases(self) -> int:
        """How often the planned steps are taken: twice where S′ is trained beforehand."""
        return 2 if self.distillation == "tf-kd-self" else 1

    def _check(self) -> None:
        _require(1 <= self.image_size <= MAX_IMAGE_SIZE, "image_size", f"1 to {MAX_IMAGE_SIZE} pixels", self.image_size)
        for name in ("epochs", "batch_size"):
            _require(getattr(self, name) >= 1, name, "a whole number of at least 1", getattr(self, name))
        for name in ("evaluate_every", "threads"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, "a whole number of at least 1", value)
        for name in ("learning_rate", "final_learning_rate", "weight_decay", "min_steps"):
            _require(getattr(self, name) >= 0, name, "a number of at least 0", getattr(self, name))
        for name in ("alpha", "beta", "flip", "warmup"):
            _require(0 <= getattr(self, name) <= 1, name, "a number in [0, 1]", getattr(self, name))
        _require(0 < self.layer_decay <= 1, "layer_decay", "a factor in (0, 1]", self.layer_decay)
        _require(0 < self.crop_scale <= 1, "crop_scale", "a share in (0, 1]", self.crop_scale)
        _require(self.clip_norm is None or self.clip_norm > 0, "clip_norm", "a norm above 0", self.clip_norm)
        if self.temperature != "auto":
            _require(self.temperature > 0, "temperature", "a number above 0", self.temperature)
        if self.drop_path != "auto":
            _require(0 <= self.drop_path < 1, "drop_path", "a probability in [0, 1)", self.drop_path)


@dataclass(frozen=True, kw_only=True)
class RecoveryConfig(_Settings):
    """What S and S′ get back of the teacher between selection and training, without labels."""

    recover: Recover = _doc(
        "none", "Images it sees: none (no recovery), the labelled ones, or all of the training part without labels."
    )
    recover_refit: Refit = _doc("on", "Fit each layer to the teacher by least squares first.")
    recover_views: int = _doc(1, "Views of each image that least squares sees, as far as --recover-memory allows.")
    recover_memory: float = _doc(
        0.625, "GiB that least squares may take for these views, about; five are seen in any case."
    )
    recover_epochs: int = _doc(0, "Passes over the images to match the teacher's final tokens; 0: none.")
    recover_batch_size: int = _doc(64, "Images a step.")
    recover_learning_rate: float = _doc(5e-4, "Peak, at batch 32; scaled linearly with the batch size.")
    recover_target: RecoverTarget = _doc(
        "all", "Match the student's own channels, or all of the teacher's through a linear map that is thrown away."
    )
    recover_blocks: bool = _doc(False, "Also match the residual stream after each block.")

    @property
    def num_epochs(self) -> int:
        """Passes over the images, none where nothing is recovered."""
        return 0 if self.recover == "none" else self.recover_epochs

    def _check(self) -> None:
        _require(self.recover_epochs >= 0, "recover_epochs", "a whole number of at least 0", self.recover_epochs)
        for name in ("recover_batch_size", "recover_views"):
            _require(getattr(self, name) >= 1, name, "a whole number of at least 1", getattr(self, name))
        memory = self.recover_memory
        _require(0 < memory <= _MOST_GIB, "recover_memory", f"more than 0 and at most {_MOST_GIB:,} GiB", memory)
        idle = self.recover != "none" and self.recover_refit == "off" and self.recover_epochs == 0
        _require(not idle, "recover_epochs", "at least 1 with --recover-refit off, or nothing is recovered", 0)
        rate = self.recover_learning_rate
        _require(rate >= 0, "recover_learning_rate", "a number of at least 0", rate)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: its data, its models, its training, and where its results go.

    Attributes:
        data: Which images.
        model: Which networks.
        training: How S is trained.
        recovery: What happens between the two.
        output: The run folder.
        force: Replace an earlier run there.
        resume: Go on with an unfinished run there.
        checkpoint_seconds: Training time between two checkpoints; it changes no number.
        pixel_cache: Keep decoded images in the cache folder and take them from there; it changes no number.
        logits: Write logits to ``predictions.csv``, too; it changes no number.
        given: Names of the settings that are not defaults; the plan of ``selected`` may not contradict them.

    Raises:
        TwinbudError: Method, S′, distillation and recovery contradict each other.
    """

    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    output: Path
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    force: bool = False
    resume: bool = False
    checkpoint_seconds: float = 60.0
    pixel_cache: bool = True
    logits: bool = False
    given: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        seconds = self.checkpoint_seconds
        _require(
            math.isfinite(seconds) and seconds >= 0, "checkpoint_seconds", "a finite number of at least 0", seconds
        )
        method, auxiliary, distillation = self.model.method, self.model.auxiliary, self.training.distillation
        if method != "dual":
            reason = f"with --method {method}, which has no S′"
            _require(distillation == "skd", "distillation", f"skd {reason}", distillation)
            _require(auxiliary == "other", "auxiliary", f"other {reason}", auxiliary)
        elif auxiliary == "none":
            _require(distillation == "skd", "distillation", "skd with --auxiliary none", distillation)
        elif distillation in _APART_FROM_TEACHER:
            reason = f"with --distillation {distillation}, whose targets do not start from the teacher"
            _require(auxiliary == "other", "auxiliary", f"other {reason}", auxiliary)
        recover = self.recovery.recover
        if recover != "none":
            if method not in ("dual", "selection"):
                profile = self.training.profile
                is_theirs = "recover" not in self.given and PROFILES[profile].get("recover") == recover
                raise TwinbudError(
                    f"none with --method {method}, which inherits nothing",
                    got=repr(recover),
                    where="--recover",
                    fix=f"Leave --profile {profile} out, or set recover to none" if is_theirs else None,
                )
            rule = self.model.rule
            if self.model.teacher is None:
                raise TwinbudError(
                    "a teacher to recover from",
                    got="--selected alone",
                    where="--recover",
                    fix="Add the --teacher that it was cut out of, or --recover none",
                )
            reason = "with --rule random-inconsistent, which leaves no channel of the teacher whole"
            _require(rule != "random-inconsistent", "recover", f"none {reason}", recover)

    @property
    def auxiliary(self) -> Auxiliary:
        """The S′ to build from the teacher: ``none`` in CM1-CM4 too, and where the targets come from elsewhere."""
        if self.model.method != "dual" or self.training.distillation in _APART_FROM_TEACHER:
            return "none"
        return self.model.auxiliary


_QUICK: dict[str, Any] = {
    "image_size": 112,
    "epochs": 40,
    "min_steps": 300,
    "learning_rate": 5e-4,
    "warmup": 0.1,
    "clip_norm": 1.0,
}
PROFILES: dict[str, dict[str, Any]] = {
    "paper": {},
    "quick": _QUICK,
    "best": _QUICK
    | {
        "method": "selection",
        "attention": "heads",
        "recover": "labelled",
        "recover_views": 4,
        "learning_rate": 3e-4,
        "layer_decay": 0.65,
    },
}
"""What each profile changes; `quick` is meant for a CPU, and `best` is what we recommend there, beyond the paper."""


def resolve(training: TrainingConfig, *, temperature: float, drop_path: float) -> TrainingConfig:
    """Replace ``auto`` by what the student's family says."""
    return replace(
        training,
        temperature=temperature if training.temperature == "auto" else training.temperature,
        drop_path=drop_path if training.drop_path == "auto" else training.drop_path,
    )
