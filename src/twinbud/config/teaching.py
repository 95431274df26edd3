"""The settings of ``twinbud teach``: a choice of those of a run, with defaults and help of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from twinbud.config.data_config import DataConfig
from twinbud.config.data_spec import parse_data
from twinbud.config.fields import Checked, unknown_setting
from twinbud.config.loading import stage_config
from twinbud.config.schema import TrainingConfig
from twinbud.config.settings import all_settings
from twinbud.config.teacher_spec import parse_teacher
from twinbud.core.errors import TwinbudError

TEACHING_DEFAULTS: dict[str, Any] = {
    "epochs": 100,
    "batch_size": 64,
    "learning_rate": 5e-4,
    "warmup": 0.1,
    "clip_norm": 1.0,
    "drop_path": 0.0,
    "near_duplicates": "group",
}
"""Settings whose defaults differ from the schema's."""
TEACHING_HELP = {
    "data": "Folder of images, with or without class folders, CSV file with or without labels, or a set by name.",
    "label_column": "CSV column of the class name, which may be absent; only the measurements read labels.",
    "split": "split.csv of a run on the same images: those that it does not train on are left out, unopened.",
    "near_duplicates": "Images that show the same picture, re-encoded, brightened, mirrored or slightly cropped: group "
    "lets them all teach or all measure.",
    "epochs": "Passes over the images.",
    "drop_path": "Stochastic depth probability of the network; auto: 0 for ViT, 0.1 for ConvNeXt.",
    "precision": "float32, or bf16 autocast where a network gains from it; auto: bf16 where this machine is faster.",
    "seed": "Seed of the initial weights, the images that measure, order, augmentation and drop path.",
}
"""Help of settings that mean something else here than in ``twinbud train``, or are described in its terms there."""
TEACHING_SETTINGS = (
    "data", "data_root", "image_column", "label_column", "patient_column", "split_column", "split", "near_duplicates",
    "window", "frames", "axis", "volume", "patient_salt", "skip_broken", "max_megapixels", "image_size", "epochs",
    "min_steps", "batch_size", "learning_rate", "final_learning_rate", "warmup", "weight_decay", "clip_norm",
    "drop_path", "crop_scale", "flip", "rotate", "brightness", "contrast", "cutout", "precision", "seed", "device",
    "threads",
)  # fmt: skip
"""Names of the settings, in the order of the command line."""
_NOT_NUMERIC = {"data", "data_root", "split", "device", "threads", "skip_broken", "max_megapixels", "patient_salt"}


@dataclass(frozen=True, kw_only=True)
class TeachConfig(Checked):
    """A network that is taught the features of another one.

    Attributes:
        architecture: timm's name of the network, which starts at random.
        source: The network whose features it learns, as ``--teacher`` spells it.
        data: The images.
        training: Image size, augmentation, optimization, precision and seed.
        output: The teacher folder.
        force: Replace an earlier teacher in ``output``.
        resume: Continue an unfinished one.
        checkpoint_seconds: Seconds of training between two checkpoints, at least 0; does not change results.
        pixel_cache: Keep decoded images in the cache folder and read them from there; does not change results.

    Raises:
        TwinbudError: A name is incomplete, there are no epochs, or the result would replace the source.
    """

    architecture: str = Field(min_length=1)
    source: str = Field(min_length=1)
    data: DataConfig
    training: TrainingConfig
    output: Path
    force: bool = False
    resume: bool = False
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    pixel_cache: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.training.epochs:
            raise TwinbudError("'0' would leave the network untrained", where="--epochs", fix="Give at least 1")
        path = parse_teacher(self.source, "--from").path
        if path is None:
            return self
        written = [self.output / name for name in ("", "model.safetensors", "config.json")]
        if path.resolve() in {place.resolve() for place in written}:
            raise TwinbudError(
                f"'{self.output}' would overwrite the source network (--from {self.source})",
                where="--output",
                fix="Choose another --output",
            )
        return self


def teach_config(
    settings: Mapping[str, Any], *, architecture: str, source: str, output: Path, **handling: Any
) -> TeachConfig:
    """Build the teaching that ``settings`` describe.

    Args:
        settings: By name; those of ``TEACHING_SETTINGS``. Text is converted to the type of the setting.
        architecture: See ``TeachConfig``, and likewise below.
        source: See there.
        output: See there.
        **handling: ``force``, ``resume``, ``checkpoint_seconds`` and ``pixel_cache``.

    Raises:
        TwinbudError: An unknown setting, an invalid value, or settings that contradict each other.
    """
    for name in settings:
        if name not in TEACHING_SETTINGS:
            raise unknown_setting(name, TEACHING_SETTINGS, command="teach")
    merged = TEACHING_DEFAULTS | dict(settings)
    return TeachConfig(
        architecture=architecture,
        source=source,
        data=stage_config(DataConfig, merged),
        training=stage_config(TrainingConfig, merged),
        output=output,
        **handling,
    )


def teaching_settings(config: TeachConfig) -> dict[str, Any]:
    """Return all settings by name, in plain types and with absolute paths."""
    values = {name: getattr(getattr(config, all_settings()[name].stage), name) for name in TEACHING_SETTINGS}
    if parse_data(config.data.data).is_path:
        values["data"] = Path(config.data.data).expanduser().absolute()
    for name in ("data_root", "split", "patient_salt"):
        values[name] = values[name] and values[name].expanduser().absolute()
    source = str(parse_teacher(config.source, "--from").absolute())
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    return {"architecture": config.architecture, "source": source, **plain}


def numeric_teaching_settings(config: TeachConfig) -> dict[str, Any]:
    """Return the settings that the weights depend on: not places, not hardware."""
    return {name: value for name, value in teaching_settings(config).items() if name not in {*_NOT_NUMERIC, "source"}}
