"""The options of each command. Values of settings stay text here: the schema converts and checks them."""

from __future__ import annotations

from argparse import SUPPRESS, BooleanOptionalAction, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from twinbud.cli.parsing import Option, parse_options
from twinbud.config.calibration import CALIBRATION_SOURCES, COVERAGE, MIN_VALIDATION_IMAGES, NUM_FOLDS
from twinbud.config.fields import option_of
from twinbud.config.profiles import DEFAULT_PROFILE, PROFILES
from twinbud.config.settings import all_settings
from twinbud.config.teaching import TEACHING_DEFAULTS, TEACHING_HELP, TEACHING_SETTINGS
from twinbud.study.executors.names import EXECUTORS

HANDLING = ("output", "force", "resume", "checkpoint_seconds", "pixel_cache", "logits", "measure_leak")
"""Options of a run that are not settings: they change no result."""
WEIGHTS = ("float32", "float16")
STUDY_FOLDER = Path("runs/study")
_METAVARS = {
    "data": "PATH|NAME",
    "data_root": "FOLDER|FILE",
    "drop_path": "PROBABILITY",
    "frames": "all|middle|N",
    "patient_salt": "FILE",
}
_ALIASES = {"frames": ("--slices",)}
"""Settings with a second name: the frames of a volume are its slices."""
_IMAGES = (
    "data", "data_root", "image_column", "label_column", "label_columns", "patient_column", "split_column",
    "patient_salt",
)  # fmt: skip
_READING = ("skip_broken", "max_megapixels")


def parse(words: Sequence[str], description: str = "") -> Namespace:
    """Parse the options of one command line; settings that are not given are absent.

    Raises:
        TwinbudError: An unknown option, or one without its value.
    """
    command, *rest = words
    usage, make_options = OPTIONS[command]
    return parse_options(command, usage, make_options(), rest, description)


def _setting(
    name: str, default: str | None = None, *, group: str = "", profiles: bool = False, about: str | None = None
) -> Option:
    """Return a setting's option; one that is not given stays absent, so that file, plan and profile decide."""
    setting = all_settings()[name]
    known = _default(name, profiles=profiles) if default is None else default
    text = f"{about or setting.help}{f' [{known}]' if known else ''}"
    if setting.hint is bool:
        return Option(option_of(name), text, group, {"action": BooleanOptionalAction, "default": SUPPRESS})
    metavar = _METAVARS.get(name, name.rpartition("_")[2].upper())
    choices = get_args(setting.hint) if get_origin(setting.hint) is Literal else ()
    keywords = {"default": SUPPRESS, "metavar": "|".join(choices) or metavar}
    return Option(option_of(name), text, group, keywords, _ALIASES.get(name, ()))


def _default(name: str, *, profiles: bool) -> str:
    """Return ``112; paper: 224``: the default, and what the other profiles have instead."""
    default = all_settings()[name].default
    values = {profile: changes.get(name, default) for profile, changes in PROFILES.items()} if profiles else {}
    own = DEFAULT_PROFILE if name == "profile" and profiles else values.get(DEFAULT_PROFILE, default)
    others = [f"{profile}: {_text(value)}" for profile, value in values.items() if value != own and name != "profile"]
    shown = "" if (own is None or own is False) and not others else _text(own)
    return "; ".join([shown, ", ".join(others)] if others else [shown])


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _flag(name: str, text: str, **keywords: Any) -> Option:
    return Option(name, text, keywords={"action": "store_true", **keywords})


def _path(name: str, text: str, metavar: str, **keywords: Any) -> Option:
    return Option(name, text, keywords={"type": Path, "metavar": metavar, **keywords})


def _output(text: str, metavar: str = "DIR", **keywords: Any) -> list[Option]:
    return [_path("--output", text, metavar, **keywords), _flag("--force", "Replace an earlier output.")]


def _logits() -> Option:
    return _flag("--logits", "Add a column logit_CLASS per class to the predictions.")


def _demo() -> list[Option]:
    return _output("Folder to make [twinbud-demo].", default=Path("twinbud-demo"))


def _select() -> list[Option]:
    settings = [_setting(name) for name in ("teacher", "student", "family", "rule", "attention", "swap_roles", "seed")]
    text = f"Precision of the files [{WEIGHTS[0]}]."
    weights = Option("--weights", text, keywords={"default": WEIGHTS[0], "metavar": "|".join(WEIGHTS)})
    return [*settings, weights, *_output("Folder to make.", required=True)]


def _resume() -> list[Option]:
    seconds = "Seconds of training between two checkpoints, at the end of an epoch [60]."
    cache = "Decode the images again, and do not keep them in the cache folder."
    return [
        _flag("--resume", "Continue an unfinished run from its last checkpoint."),
        Option("--checkpoint-seconds", seconds, keywords={"default": 60.0, "metavar": "SECONDS"}),
        _flag("--no-pixel-cache", cache, dest="pixel_cache", action="store_false"),
    ]


def _train() -> list[Option]:
    config = "YAML file of settings. Options override it; --teacher and --selected override all it says of weights."
    leak = (
        "Train a second time, in RUN/naive, on a split that ignores near-duplicates and identical images, and report"
        " what it would claim."
    )
    return [
        _path("--config", config, "FILE.yaml"),
        *_output("Run folder to make.", required=True),
        *_resume(),
        _logits(),
        _flag("--measure-leak", leak),
        *(
            _setting(name, "" if name == "data" else None, group=setting.stage, profiles=True)
            for name, setting in all_settings().items()
        ),
    ]


def _teach() -> list[Option]:
    source = "The network whose features it learns, spelled as the --teacher of 'twinbud train'."
    name = "timm name of the network, which starts at random, such as convnext_tiny."
    options = [
        _setting(
            name,
            "" if name == "data" else _text(TEACHING_DEFAULTS[name]) if name in TEACHING_DEFAULTS else None,
            about=TEACHING_HELP.get(name),
        )
        for name in TEACHING_SETTINGS
    ]
    options[0].keywords["required"] = True  # the images
    return [
        Option("--architecture", name, keywords={"required": True, "metavar": "NAME"}),
        Option("--from", source, keywords={"required": True, "metavar": "TEACHER", "dest": "source"}),
        *_output("Teacher folder to make.", required=True),
        *_resume(),
        *options,
    ]


def _evaluate() -> list[Option]:
    return [
        _path("run", "Output of 'twinbud train'.", "RUN"),
        *(_setting(name, "the run's") for name in (*_IMAGES, "aggregate")),
        *(_setting(name) for name in _READING),
        _logits(),
        *_output("Folder for metrics.json, predictions.csv and left_out.csv."),
    ]


def _calibrate() -> list[Option]:
    on = (
        "Images to calibrate on: the validation part, or the labelled images in folds"
        f" [{CALIBRATION_SOURCES[0]}: val if it has at least {MIN_VALIDATION_IMAGES} images, else folds]."
    )
    folds = f"Folds of the labelled images; the run is repeated without each of them [{NUM_FOLDS}]."
    coverage = f"Probability with which a prediction set contains the right class [{COVERAGE:g}]."
    return [
        _path("run", "Output of 'twinbud train'.", "RUN"),
        _setting("data", "images of the run", about="Labelled images of another site, to calibrate the run again for."),
        Option("--on", on, keywords={"default": CALIBRATION_SOURCES[0], "metavar": "|".join(CALIBRATION_SOURCES)}),
        Option("--folds", folds, keywords={"default": NUM_FOLDS, "metavar": "N"}),
        Option("--coverage", coverage, keywords={"default": COVERAGE, "metavar": "SHARE"}),
        _flag("--per-class", "Ensure the coverage for the images of each class."),
        *(_setting(name, "the run's") for name in _IMAGES if name != "data"),
        _flag("--force", "Calibrate a calibrated run again."),
    ]


def _predict() -> list[Option]:
    return [
        _path("model", "A finished run, or its model folder.", "RUN|MODEL_FOLDER"),
        _path("images", "Images to classify, or folders of them.", "IMAGE_OR_FOLDER", nargs="+"),
        *(_setting(name) for name in _READING),
        _logits(),
        *_output("CSV file to write instead of printing.", "FILE.csv"),
    ]


def _explain() -> list[Option]:
    return [
        _path("model", "A finished run or, with images, its model folder.", "RUN|MODEL_FOLDER"),
        _path(
            "images",
            "Images, or folders of images [some right and wrong answers of the run's test part].",
            "IMAGE_OR_FOLDER",
            nargs="*",
        ),
        Option("--label", "Class to explain for every image [what is predicted].", keywords={"metavar": "CLASS"}),
        Option("--map", "grad-cam, or rollout: the attention of a ViT [grad-cam].", keywords={"default": "grad-cam"}),
        *map(_setting, _READING),
        *_output("Folder to make [twinbud-explanations; without images RUN/explanations]."),
    ]


def _export() -> list[Option]:
    number = {"default": SUPPRESS, "metavar": "NUMBER"}
    compiled = {"dest": "measure_compiled", "action": "store_false"}
    return [
        _path("model", "A finished run, or its model folder.", "RUN|MODEL_FOLDER"),
        Option("--format", "Format of the file [onnx].", keywords={"metavar": "onnx", "default": "onnx"}),
        _flag("--int8", "Quantize to 8 bits, if that is faster on this machine and as accurate."),
        Option("--tolerance", "Largest difference of a logit from torch's [0.001].", keywords=number),
        Option("--opset", "Version of ONNX's operators, 18 to 23 [23].", keywords=number),
        _flag("--no-compiled", "Do not measure compiled torch, which takes a minute.", **compiled),
        *_output("File to write [RUN.onnx, or RUN.int8.onnx].", "FILE.onnx"),
    ]


def _report() -> list[Option]:
    text = "Page to write instead of the report.html and the model card of the run."
    return [_path("run", "Output of 'twinbud train'.", "RUN"), *_output(text, "FILE.html")]


def _audit() -> list[Option]:
    data = "Folder of class folders, CSV file, or a set by name, as 'twinbud train' takes it with --data."
    split = "split.csv of a run, to examine that split [the split in the data, if it has one]."
    cache = "Read the images again, and do not keep thumbnails in the cache folder."
    return [
        Option("data", data, keywords={"metavar": "DATA"}),
        _path("--split", split, "FILE"),
        *(_setting(name) for name in _IMAGES if name != "data"),
        _setting("max_megapixels"),
        _flag("--no-pixel-cache", cache, dest="pixel_cache", action="store_false"),
        *_output("Folder to make, with audit.html and audit.json [twinbud-audit].", default=Path("twinbud-audit")),
    ]


def _study() -> list[Option]:
    many: dict[str, Any] = {"action": "append", "default": []}
    data = "Path of an image set of the recipe; a set that 'twinbud datasets' lists needs none. Can be repeated."
    only = "Execute these runs only, such as fraction=0.05 or sampling=0,1,2. Can be repeated."
    profile = "Profile that supplies the defaults of all settings [the recipe's]."
    cache = "Do not cache decoded images on the disk; each worker then decodes all images."
    executor = f"Processes of this machine, tasks of a Ray cluster, or a job array of Slurm [{EXECUTORS[0]}]."
    address = "Head node of the Ray cluster [$RAY_ADDRESS, else the cluster that this machine is in]."
    gpus = "GPUs of a run on a cluster; with ray, a fraction for runs that share one [1 if ray has GPUs, else 0]."
    slurm = "Option of the job array, such as partition=gpu or time=60 (minutes). Can be repeated."
    return [
        _path("recipe", "The recipe, such as those in recipes/paper/.", "RECIPE.yaml"),
        Option("--data", data, keywords={**many, "metavar": "NAME=PATH"}),
        _study_folder("Runs folder; recipes with the same folder share runs"),
        Option(
            "--workers",
            "Worker processes; 0 runs in this process [as many as the CPU cores allow; one a GPU]. With"
            " --executor ray or slurm: runs at the same time, at most [as many as fit; 64].",
            keywords={"metavar": "N"},
        ),
        Option("--executor", executor, keywords={"metavar": "|".join(EXECUTORS), "default": EXECUTORS[0]}),
        Option("--address", address, keywords={"metavar": "HOST:PORT"}),
        Option("--gpus", gpus, keywords={"metavar": "N"}),
        Option("--slurm", slurm, keywords={**many, "metavar": "KEY=VALUE"}),
        Option("--profile", profile, keywords={"metavar": "|".join(PROFILES)}),
        Option("--only", only, keywords={**many, "metavar": "KEY=VALUE"}),
        _flag("--keep-models", "Keep the trained model of every run."),
        _flag("--no-pixel-cache", cache, dest="pixel_cache", action="store_false"),
        _flag("--dry-run", "Print the plan and the estimated time, and stop."),
    ]


def _tables() -> list[Option]:
    return [
        _path("recipe", "The recipe given to 'twinbud study'.", "RECIPE.yaml"),
        _study_folder("Runs folder of 'twinbud study'"),
        _path("--output", "Folder for the tables [RUNS/tables].", "DIR"),
    ]


def _datasets() -> list[Option]:
    return [
        _flag("--json", "Print all facts as JSON."),
        _path("--data-root", "Look for copies in this folder [where sets are downloaded to].", "FOLDER"),
    ]


def _families() -> list[Option]:
    name = "Network as --teacher spells it: show which tensors share each width, and prove it."
    return [
        Option("network", name, keywords={"metavar": "NAME", "nargs": "?"}),
        _setting("family"),
        _flag("--json", "Print all facts as JSON."),
    ]


def _study_folder(text: str) -> Option:
    return _path("--runs", f"{text} [{STUDY_FOLDER}].", "DIR", default=STUDY_FOLDER)


OPTIONS: dict[str, tuple[str, Callable[[], list[Option]]]] = {
    "demo": ("[--output DIR] [--force]", _demo),
    "train": ("--data PATH|NAME (--teacher T | --selected DIR) [options] --output RUN", _train),
    "evaluate": ("RUN [--data PATH|NAME] [options] [--output DIR]", _evaluate),
    "calibrate": ("RUN [--on auto|folds|val] [--data PATH|NAME] [options]", _calibrate),
    "predict": ("RUN|MODEL_FOLDER IMAGE_OR_FOLDER... [options] [--output FILE.csv]", _predict),
    "explain": ("RUN|MODEL_FOLDER [IMAGE_OR_FOLDER...] [options] [--output DIR]", _explain),
    "export": ("RUN|MODEL_FOLDER [--int8] [options] [--output FILE.onnx]", _export),
    "report": ("RUN [--output FILE.html] [--force]", _report),
    "select": ("--teacher T [--student half|NAME] [options] --output DIR", _select),
    "teach": ("--architecture NAME --from TEACHER --data PATH [--split FILE] [options] --output DIR", _teach),
    "audit": ("DATA [--split FILE] [options] [--output DIR]", _audit),
    "study": ("RECIPE.yaml [--data NAME=PATH]... [options] [--runs DIR]", _study),
    "datasets": ("[--json] [--data-root FOLDER]", _datasets),
    "families": ("[NAME] [--family described|auto] [--json]", _families),
    "tables": ("RECIPE.yaml [--runs DIR] [--output DIR]", _tables),
}
"""Of each command, how it is called, and its options."""
