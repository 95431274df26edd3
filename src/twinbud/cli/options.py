"""The options of each command; values stay words until the settings read them."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser
from jsonargparse._core import ArgumentGroup

from twinbud.config.loading import STAGES, Stage
from twinbud.config.schema import PROFILES, DataConfig, ModelConfig, TrainingConfig

HANDLING = ("output", "force", "resume", "checkpoint_seconds", "pixel_cache", "logits")
"""Options of a run that are no settings: they change no number."""
WEIGHTS = ("float32", "float16")
_VALUES = {"data": "PATH", "drop_path": "PROBABILITY"}
"""What the value of an option is called, where the end of its name does not say."""
_SOURCE_SETTINGS = (
    "data", "image_column", "label_column", "patient_column", "split_column", "skip_broken", "max_megapixels",
)  # fmt: skip


def demo_options(parser: ArgumentParser) -> None:
    """Of ``twinbud demo``."""
    _add_output(parser, "Folder to make [twinbud-demo].", required=False)


def select_options(parser: ArgumentParser) -> None:
    """Of ``twinbud select``."""
    for name in ("teacher", "student", "rule", "attention", "swap_roles"):
        _add_setting(parser, ModelConfig, name, profiles={})
    _add_setting(parser, TrainingConfig, "seed")
    text = f"Precision of the files [{WEIGHTS[0]}]."
    parser.add_argument("--weights", default=WEIGHTS[0], metavar="|".join(WEIGHTS), help=text)
    _add_output(parser, "Folder to make.", required=True)


def train_options(parser: ArgumentParser) -> None:
    """Of ``twinbud train``."""
    text = (
        "YAML file of any of these settings, by name. Words on the command line win; --teacher and --selected "
        "stand for all that says where weights come from."
    )
    parser.add_argument("--config", type=Path | None, metavar="FILE.yaml", help=text)
    _add_output(parser, "Run folder to make.", required=True)
    parser.add_argument("--resume", action="store_true", help="Go on with an unfinished run, from its last checkpoint.")
    text = "Seconds of training between two checkpoints, at an epoch's end [60]."
    parser.add_argument("--checkpoint-seconds", default=60.0, metavar="SECONDS", help=text)
    text = "Decode the images anew and keep none in the cache folder; else pixels are kept there for the next run."
    parser.add_argument("--no-pixel-cache", dest="pixel_cache", action="store_false", help=text)
    _add_logits(parser)
    for stage, kind in STAGES.items():
        group = parser.add_argument_group(stage, description=str(kind.__doc__).partition("\n")[0])
        for setting in fields(kind):
            _add_setting(group, kind, setting.name, default="" if setting.name == "data" else None)


def evaluate_options(parser: ArgumentParser) -> None:
    """Of ``twinbud evaluate``."""
    parser.add_argument("run", type=Path, metavar="RUN", help="Output of 'twinbud train'.")
    for name in _SOURCE_SETTINGS:
        is_the_runs = name not in ("skip_broken", "max_megapixels")
        _add_setting(parser, DataConfig, name, default="the run's" if is_the_runs else None)
    _add_logits(parser)
    _add_output(parser, "Folder for metrics.json, predictions.csv and left_out.csv.", required=False)


def report_options(parser: ArgumentParser) -> None:
    """Of ``twinbud report``."""
    parser.add_argument("run", type=Path, metavar="RUN", help="Output of 'twinbud train'.")
    text = "Page to write instead of the report.html and the model card of the run."
    _add_output(parser, text, required=False, metavar="FILE.html")


def predict_options(parser: ArgumentParser) -> None:
    """Of ``twinbud predict``."""
    parser.add_argument("model", type=Path, metavar="RUN|MODEL_FOLDER", help="A finished run, or its model folder.")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE_OR_FOLDER", help="What to classify.")
    for name in ("skip_broken", "max_megapixels"):
        _add_setting(parser, DataConfig, name)
    _add_logits(parser)
    _add_output(parser, "Write here instead of printing.", required=False, metavar="FILE.csv")


def _add_setting(
    parser: ArgumentParser | ArgumentGroup,
    kind: Stage,
    name: str,
    *,
    default: str | None = None,
    profiles: Mapping[str, Mapping[str, Any]] = PROFILES,
) -> None:
    """One option from one field; what is not given stays out, so that the profile can decide.

    Values stay words here: the settings read and check them, alike from the command line and from a file.
    """
    setting: Field[Any] = next(field for field in fields(kind) if field.name == name)
    known = _default(setting, profiles) if default is None else default
    text = f"{setting.metadata['help']}{f' [{known}]' if known else ''}"
    option, hint = f"--{name.replace('_', '-')}", get_type_hints(kind)[name]
    if hint is bool:
        parser.add_argument(option, action="store_true", default=SUPPRESS, help=text)
    else:
        value = _VALUES.get(name, name.rpartition("_")[2].upper())
        metavar = "|".join(get_args(hint)) if get_origin(hint) is Literal else value
        parser.add_argument(option, default=SUPPRESS, metavar=metavar, help=text)


def _default(setting: Field[Any], profiles: Mapping[str, Mapping[str, Any]]) -> str:
    others = [f"{profile}: {changes[setting.name]}" for profile, changes in profiles.items() if setting.name in changes]
    if setting.default is None or setting.default is False:
        return ", ".join(others)
    value = f"{setting.default:.3g}" if isinstance(setting.default, float) else str(setting.default)
    return ", ".join([value, *others])


def _add_logits(parser: ArgumentParser) -> None:
    parser.add_argument("--logits", action="store_true", help="Add a column logit_CLASS per class to the predictions.")


def _add_output(parser: ArgumentParser, text: str, *, required: bool, metavar: str = "DIR") -> None:
    parser.add_argument("--output", type=Path | None, required=required, metavar=metavar, help=text)
    parser.add_argument("--force", action="store_true", help="Replace an earlier output.")
