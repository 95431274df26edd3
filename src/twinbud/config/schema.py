"""Every setting: one frozen dataclass per stage, with type, default, range and one sentence of help per field.

The defaults are the paper's; ``twinbud.config.profiles`` holds what a profile changes, and docs/method.md what the
paper leaves open. A field name is also the command-line option (``image_size`` is ``--image-size``) and the key in a
YAML file, so it is unique across the stages. Two equal configurations describe the same run.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from twinbud.config.combinations import (
    require,
    require_importance,
    require_student,
    require_tunable,
    require_two_splits,
    unopened_teacher,
)
from twinbud.config.data_config import DataConfig
from twinbud.config.fields import Checked, setting
from twinbud.config.recovery import Recover, RecoveryConfig
from twinbud.config.task import Balance
from twinbud.config.tuning import TuningConfig
from twinbud.core.errors import TwinbudError

Method = Literal["dual", "selection", "timm", "xavier", "kaiming", "finetune", "probe"]
Auxiliary = Literal["other", "copy", "frozen", "none"]
Distillation = Literal["skd", "cs-kd", "cs-kd-pair", "tf-kd", "tf-kd-self", "tf-kd-reg", "teacher", "skd+teacher"]
Rule = Literal["uniform", "consecutive", "random", "random-inconsistent"]
Attention = Literal["interleaved", "heads", "within"]
Family = Literal["described", "auto"]
Precision = Literal["auto", "float32", "bf16"]
Compile = Literal["auto", "on", "off"]
CrossEntropyTemperature = Literal["one", "tau"]
LayerScale = Literal["one", "timm"]
Device = Literal["auto", "cpu", "cuda"]
Profile = Literal["paper", "quick", "best"]
ClassifierStart = Literal["random", "probe"]
Auto = Literal["auto"]

MAX_IMAGE_SIZE = 4096
"""Largest side in pixels: no supported classifier takes larger images, and larger values only exhaust memory."""
INHERITING_METHODS: tuple[Method, ...] = ("dual", "selection")
"""Methods whose student starts from selected weights of the teacher."""
WHOLE_METHODS: tuple[Method, ...] = ("finetune", "probe")
"""Methods that keep a pretrained network whole."""
RANDOM_METHODS: tuple[Method, ...] = ("timm", "xavier", "kaiming")
"""Methods that start at random."""
TEACHER_TARGETS: tuple[Distillation, ...] = ("teacher", "skd+teacher")
"""Variants whose soft targets come from the teacher's classifier."""
_OWN_TARGETS: tuple[Distillation, ...] = ("tf-kd-self", "tf-kd-reg", "teacher")
"""Variants whose soft targets come from a trained copy of the student, a formula or the teacher; no auxiliary."""
_UNMIXED_TARGETS: tuple[Distillation, ...] = ("cs-kd", "cs-kd-pair", "tf-kd", "tf-kd-reg")
"""Variants whose soft targets belong to one image or one class."""
_WITHOUT_AUXILIARY: tuple[Distillation, ...] = ("skd", "teacher")
"""Variants that a method without auxiliary may have; ``skd`` then has no soft targets."""
_Temperature = Annotated[float, Field(gt=0)] | Auto
_DropPath = Annotated[float, Field(ge=0, lt=1)] | Auto


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """Teacher, student, and how the weights of student and auxiliary are selected."""

    teacher: str | None = setting(
        None,
        "Pretrained network to take weights from: dinov2-small, efficientnet-lite0, a timm name,"
        " ARCHITECTURE@FILE.safetensors or local-dir:FOLDER.",
        min_length=1,
    )
    selected: Path | None = setting(
        None, "Output of 'twinbud select', in place of student, family, rule, attention and swap_roles."
    )
    student: str = setting(
        "half",
        "half or quarter of the teacher's width, or a timm name of the same family; finetune, probe: 'same', or any"
        " network as teacher spells it.",
        min_length=1,
    )
    method: Method = setting(
        "dual",
        "How the student starts. selection: from weights of the teacher; dual: the same, with a second network, the"
        " auxiliary, that gives soft targets; timm, xavier, kaiming: at random; finetune, probe: a whole pretrained"
        " network.",
    )
    family: Family = setting(
        "described",
        "Widths of the network: described (by twinbud), or auto (found in any network and verified; no recovery).",
    )
    rule: Rule = setting("uniform", "How the channels that student and auxiliary take from the teacher are chosen.")
    attention: Attention = setting(
        "interleaved",
        "Heads: interleaved (of single channels across all), heads (fewer, whole), or within (all, narrower; ViT).",
    )
    auxiliary: Auxiliary = setting(
        "other",
        "Weights of the auxiliary: other (the subset that the student does not take), copy (of the student), frozen"
        " (other, not updated), or none.",
    )
    swap_roles: bool = setting(False, "Exchange the subsets of student and auxiliary (Table 5 of arXiv 2508.20461).")
    layer_scale: LayerScale = setting(
        "one", "LayerScale of timm, xavier and kaiming at the start: 1, or timm's own value."
    )

    @property
    def pretrained(self) -> str | None:
        """Name of the network that ``finetune`` and ``probe`` keep: the student's, or the teacher's."""
        return self.teacher if self.student == "same" else self.student


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Checked):
    """How the student is trained; equations and sections refer to arXiv 2508.20461."""

    profile: Profile = setting(
        "paper", "Source of all defaults: best (recommended), quick (for a CPU), paper (its values)."
    )
    image_size: int = setting(224, "Side in pixels after resizing; proportions are not kept.", ge=1, le=MAX_IMAGE_SIZE)
    classifier_start: ClassifierStart = setting(
        "random", "Classifier before training: random, or logistic regression on the labelled images."
    )
    epochs: int = setting(
        300, "Passes over the labelled images; 0: the student is delivered as recovery fits it.", ge=0
    )
    min_steps: int = setting(0, "Add epochs until at least this many optimizer steps are planned.", ge=0)
    batch_size: int = setting(32, "Images per step; the last, smaller batch is kept.", ge=1)
    learning_rate: float = setting(1.25e-4, "Peak at batch size 32; scaled linearly with the batch size.", ge=0)
    final_learning_rate: float = setting(1e-6, "Value at the end of the cosine schedule.", ge=0)
    warmup: float = setting(1 / 6, "Share of the steps with a linearly rising learning rate.", ge=0, le=1)
    weight_decay: float = setting(0.05, "AdamW weight decay of parameters with two or more dimensions.", ge=0)
    layer_decay: float = setting(1.0, "Factor of the learning rate from each layer to the one below.", gt=0, le=1)
    clip_norm: float | None = setting(None, "Maximum gradient norm; none: no clipping.", gt=0)
    distillation: Distillation = setting(
        "skd", "Source of soft targets: skd (the auxiliary), a variant of Table 6, or the teacher."
    )
    alpha: float = setting(0.6, "Weight of cross-entropy; self-distillation has 1 - alpha (eq. 5).", ge=0, le=1)
    beta: float = setting(0.9, "EMA decay of the auxiliary, the moving average of the student (eq. 7).", ge=0, le=1)
    average: float | None = setting(
        None,
        "Decay of the moving average of the student's weights that is delivered; none: the last weights.",
        gt=0,
        lt=1,
    )
    temperature: _Temperature = setting(
        "auto", "Softmax temperature τ of soft targets (eqs. 1-3); auto: 4 for transformers and Mixers, else 3."
    )
    ce_temperature: CrossEntropyTemperature = setting("one", "Softmax temperature of eq. 4: 1, or τ as printed.")
    drop_path: _DropPath = setting("auto", "Stochastic depth probability; auto: 0.1 for ConvNeXt and Swin, else 0.")
    crop_scale: float = setting(0.8, "Smallest area of the random resized crop.", gt=0, le=1)
    flip: float = setting(0.5, "Probability of a horizontal flip.", ge=0, le=1)
    rotate: float = setting(0.0, "Largest rotation in degrees, in either direction; 0: off.", ge=0, le=45)
    brightness: float = setting(0.0, "Largest relative change of brightness; 0: off.", ge=0, lt=1)
    contrast: float = setting(0.0, "Largest relative change of contrast; 0: off.", ge=0, lt=1)
    cutout: float = setting(0.0, "Side of a covered square, as a share of the image's; 0: off.", ge=0, lt=1)
    mixup: float = setting(0.0, "Parameter of mixup's Beta distribution: images are blended; 0: off.", ge=0)
    cutmix: float = setting(0.0, "Parameter of CutMix's Beta distribution: rectangles are replaced; 0: off.", ge=0)
    label_smoothing: float = setting(0.0, "Share of each label spread evenly over the classes (eq. 4).", ge=0, lt=1)
    balance: Balance = setting(
        "none", "For classes of different size: weights in the loss, a sampler, or logit adjustment (Menon et al.)."
    )
    precision: Precision = setting(
        "auto", "float32, or bf16 autocast where a network gains from it; auto: bf16 where this machine is faster."
    )
    compile: Compile = setting(
        "auto", "torch.compile, with CUDA graphs on a GPU; auto: where enough steps are planned."
    )
    seed: int = setting(0, "Seed of labelled subset, classifier, order, augmentation, drop path and random selection.")
    evaluate_every: int | None = setting(
        None, "Also test every N epochs; the result stays that of the last epoch.", ge=1
    )
    device: Device = setting("auto", "Where to train; auto: the GPU if there is one.")
    threads: int | None = setting(None, "CPU threads; none: PyTorch's default.", ge=1, le=1024)

    @property
    def num_phases(self) -> int:
        """Number of training phases: 2 where a first phase trains the network that gives the soft targets."""
        return 2 if self.distillation == "tf-kd-self" else 1

    @property
    def learns_from_teacher(self) -> bool:
        """Whether soft targets come from the teacher's classifier."""
        return self.distillation in TEACHER_TARGETS

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if self.distillation in _UNMIXED_TARGETS:
            reason = f"--distillation {self.distillation}, whose targets belong to one image or one class"
            for name, value in (("mixup", self.mixup), ("cutmix", self.cutmix)):
                require(value == 0, name, value, reason, "0")
        keeps_samples = self.distillation == "tf-kd" and self.balance == "sampler"
        reason = "--distillation tf-kd, which needs each image once an epoch"
        require(not keeps_samples, "balance", "sampler", reason, "weights, or --distillation skd")
        return self


@dataclass(frozen=True, kw_only=True)
class Fold(Checked):
    """One fold of the labelled images.

    Attributes:
        number: From 1 to ``count``.
        count: Number of folds, at least 2.
    """

    number: int
    count: int


@dataclass(frozen=True, kw_only=True)
class RunConfig(Checked):
    """One run: data, models, training, recovery, and the run folder.

    Attributes:
        data: Images and split.
        model: Teacher and student.
        training: Training of the student.
        tuning: Fine-tuning of the teacher before selection.
        recovery: Recovery between selection and training.
        output: The run folder.
        force: Replace an earlier run in ``output``.
        resume: Continue an unfinished run in ``output``.
        checkpoint_seconds: Seconds of training between two checkpoints, at least 0; does not change results.
        pixel_cache: Keep decoded images in the cache folder and read them from there; does not change results.
        logits: Write logits to ``predictions.csv``, too; does not change results.
        measure_leak: Train a second time, in a folder inside ``output``, on a split that ignores identical images and
            near-duplicates, and report what it would claim; does not change the first run.
        teacher_cache: Folder where runs that fine-tune the teacher in the same way share it; None: in the run folder.
        fold: Train without this fold of the labelled images, and measure on it; None: on the test part.

    Raises:
        TwinbudError: Method, auxiliary, distillation and recovery contradict each other.
    """

    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    output: Path
    tuning: TuningConfig = Field(default_factory=TuningConfig)
    recovery: RecoveryConfig = Field(default_factory=RecoveryConfig)
    force: bool = False
    resume: bool = False
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    pixel_cache: bool = True
    logits: bool = False
    measure_leak: bool = False
    teacher_cache: Path | None = None
    fold: Fold | None = None

    @property
    def auxiliary(self) -> Auxiliary:
        """The auxiliary built from the teacher; ``none`` where the method or the distillation uses no such network."""
        if self.model.method != "dual" or self.training.distillation in _OWN_TARGETS:
            return "none"
        return self.model.auxiliary

    @property
    def teacher_use(self) -> tuple[str, str] | None:
        """The result of the function ``teacher_use``."""
        return teacher_use(self.recovery.recover, self.training.distillation)

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.measure_leak:
            require_two_splits(self.data)
        method, auxiliary, distillation = self.model.method, self.model.auxiliary, self.training.distillation
        is_whole = method in WHOLE_METHODS
        require_student(f"--method {method}", self.model.student, self.model.selected, is_whole=is_whole)
        needs_teacher = not is_whole or self.model.student == "same" or self.teacher_use is not None
        if self.model.teacher is None and self.model.selected is None and needs_teacher:
            fix = "Give --teacher dinov2-small, or --selected DIR"
            raise TwinbudError("no teacher is given", where="--teacher", fix=fix)
        if not self.training.epochs and not self.recovery.recovers_classifier and method != "probe":
            problem, fix = "0 would deliver a classifier that nothing has trained", "Give at least 1"
            if method in INHERITING_METHODS:
                fix += ", or fit it: --tune-teacher --recover labelled --recover-classifier on"
            raise TwinbudError(problem, where="--epochs", fix=fix)
        if method == "dual" and self.training.classifier_start == "probe":
            problem = "'probe' is not possible with --method dual: its auxiliary would need such a classifier as well"
            raise TwinbudError(problem, where="--classifier-start", fix="Give --classifier-start random")
        if method == "probe":
            reason = "--method probe, which learns from labels alone"
            require(distillation == "skd", "distillation", distillation, reason, "skd")
        if method != "dual":
            reason, fits = f"--method {method}, which has no auxiliary", distillation in _WITHOUT_AUXILIARY
            require(auxiliary == "other", "auxiliary", auxiliary, reason, "other, or --method dual")
            if distillation in _OWN_TARGETS:
                reason = f"--method {method}, whose soft targets can only be those of a teacher"
            require(fits, "distillation", distillation, reason, "skd or teacher, or --method dual")
        elif auxiliary == "none":
            fits = distillation in _WITHOUT_AUXILIARY
            require(fits, "distillation", distillation, "--auxiliary none", "skd or teacher")
        elif distillation in _OWN_TARGETS:
            reason = f"--distillation {distillation}, whose targets do not come from the auxiliary"
            require(auxiliary == "other", "auxiliary", auxiliary, reason, "other")
        recover = self.recovery.recover
        if recover != "none":
            inherits, rule = method in INHERITING_METHODS, self.model.rule
            require(inherits, "recover", recover, f"--method {method}, which selects no weights", "none")
            reason = f"--rule {rule}, which selects no teacher channel as a whole"
            require(rule != "random-inconsistent", "recover", recover, reason, "none")
            if self.recovery.chooses_by_importance is not None:
                require_importance(*self.recovery.chooses_by_importance, self.model.attention, rule)
        if self.teacher_use is not None and self.model.teacher is None:
            raise unopened_teacher(*self.teacher_use)
        if self.tuning.tune_teacher:
            takes_from_teacher = method in INHERITING_METHODS or self.training.learns_from_teacher
            require_tunable(method, self.model.selected, takes_from_teacher=takes_from_teacher)
        return self


def teacher_use(recover: Recover, distillation: Distillation) -> tuple[str, str] | None:
    """Return the setting, and its value, that needs the teacher's own weights besides selection, or None."""
    if recover != "none":
        return "recover", recover
    return ("distillation", distillation) if distillation in TEACHER_TARGETS else None


def resolve(training: TrainingConfig, *, temperature: float, drop_path: float) -> TrainingConfig:
    """Replace ``auto`` by the values of the student's family."""
    return replace(
        training,
        temperature=temperature if training.temperature == "auto" else training.temperature,
        drop_path=drop_path if training.drop_path == "auto" else training.drop_path,
    )
