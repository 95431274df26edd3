"""The options of each command. Values of settings stay text here: the schema converts and checks them."""

from __future__ import annotations

from argparse import SUPPRESS, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twinbud.cli.making_options import flag, output_options, path_option, setting_option, value_text
from twinbud.cli.parsing import Option, not_empty, parse_options
from twinbud.config.calibration import CALIBRATION_SOURCES, COVERAGE, MIN_VALIDATION_IMAGES, NUM_FOLDS
from twinbud.config.profiles import PROFILES
from twinbud.config.settings import all_settings
from twinbud.config.teaching import TEACHING_DEFAULTS, TEACHING_HELP, TEACHING_SETTINGS
from twinbud.study.executors.names import EXECUTORS

HANDLING = ("output", "force", "resume", "checkpoint_seconds", "pixel_cache", "logits", "measure_leak")
"""Options of a run that are not settings: they change no result."""
WEIGHTS = ("float32", "float16")
STUDY_FOLDER = Path("runs/study")
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


def _logits() -> Option:
    return flag("--logits", "Add a column logit_CLASS per class to the predictions.")


def _demo() -> list[Option]:
    return output_options("Folder to make [twinbud-demo].", default=Path("twinbud-demo"))


def _select() -> list[Option]:
    settings = [
        setting_option(name) for name in ("teacher", "student", "family", "rule", "attention", "swap_roles", "seed")
    ]
    text = f"Precision of the files [{WEIGHTS[0]}]."
    weights = Option("--weights", text, keywords={"default": WEIGHTS[0], "metavar": "|".join(WEIGHTS)})
    return [*settings, weights, *output_options("Folder to make.", required=True)]


def _resume() -> list[Option]:
    seconds = "Seconds of training between two checkpoints, at the end of an epoch [60]."
    cache = "Decode the images again, and do not keep them in the cache folder."
    return [
        flag("--resume", "Continue an unfinished run from its last checkpoint."),
        Option("--checkpoint-seconds", seconds, keywords={"default": 60.0, "metavar": "SECONDS"}),
        flag("--no-pixel-cache", cache, dest="pixel_cache", action="store_false"),
    ]


def _train() -> list[Option]:
    config = "YAML file of settings. Options override it; --teacher and --selected override all it says of weights."
    leak = (
        "Train a second time, in RUN/naive, on a split that ignores near-duplicates and identical images, and report"
        " what it would claim."
    )
    return [
        path_option("--config", config, "FILE.yaml"),
        *output_options("Run folder to make.", required=True),
        *_resume(),
        _logits(),
        flag("--measure-leak", leak),
        *(
            setting_option(name, "" if name == "data" else None, group=setting.stage, profiles=True)
            for name, setting in all_settings().items()
        ),
    ]


def _teach() -> list[Option]:
    source = "The network whose features it learns, spelled as the --teacher of 'twinbud train'."
    name = "timm name of the network, which starts at random, such as convnext_tiny."
    taught = {"required": True, "metavar": "TEACHER", "dest": "source", "type": not_empty("--from")}
    options = [
        setting_option(
            name,
            "" if name == "data" else value_text(TEACHING_DEFAULTS[name]) if name in TEACHING_DEFAULTS else None,
            about=TEACHING_HELP.get(name),
        )
        for name in TEACHING_SETTINGS
    ]
    options[0].keywords["required"] = True  # the images
    return [
        Option("--architecture", name, keywords={"required": True, "metavar": "NAME"}),
        Option("--from", source, keywords=taught),
        *output_options("Teacher folder to make.", required=True),
        *_resume(),
        *options,
    ]


def _evaluate() -> list[Option]:
    return [
        path_option("run", "Output of 'twinbud train'.", "RUN"),
        *(setting_option(name, "the run's") for name in (*_IMAGES, "aggregate")),
        *(setting_option(name) for name in _READING),
        _logits(),
        *output_options("Folder for metrics.json, predictions.csv and left_out.csv."),
    ]


def _calibrate() -> list[Option]:
    on = (
        "Images to calibrate on: the validation part, or the labelled images in folds"
        f" [{CALIBRATION_SOURCES[0]}: val if it has at least {MIN_VALIDATION_IMAGES} images, else folds]."
    )
    coverage = f"Probability with which a prediction set contains the right class [{COVERAGE:g}]."
    return [
        path_option("run", "Output of 'twinbud train'.", "RUN"),
        setting_option(
            "data", "images of the run", about="Labelled images of another site, to calibrate the run again for."
        ),
        Option("--on", on, keywords={"default": CALIBRATION_SOURCES[0], "metavar": "|".join(CALIBRATION_SOURCES)}),
        _folds(default=None),
        Option("--coverage", coverage, keywords={"default": COVERAGE, "metavar": "SHARE"}),
        flag("--per-class", "Ensure the coverage for the images of each class."),
        *(setting_option(name, "the run's") for name in _IMAGES if name != "data"),
        flag("--force", "Calibrate a calibrated run again."),
    ]


def _compare() -> list[Option]:
    return [
        path_option("runs", "Outputs of 'twinbud train' that learned from the same labelled images.", "RUN", nargs="+"),
        _folds(),
        flag("--json", "Print all facts as JSON."),
    ]


def _folds(default: int | None = NUM_FOLDS) -> Option:
    text = f"Folds of the labelled images; the run is repeated without each of them [{NUM_FOLDS}]."
    return Option("--folds", text, keywords={"default": default, "metavar": "N"})


def _predict() -> list[Option]:
    return [
        path_option("model", "A finished run, or its model folder.", "RUN|MODEL_FOLDER"),
        path_option("images", "Images to classify, or folders of them.", "IMAGE_OR_FOLDER", nargs="+"),
        *(setting_option(name) for name in _READING),
        _logits(),
        *output_options("CSV file to write instead of printing.", "FILE.csv"),
    ]


def _explain() -> list[Option]:
    return [
        path_option("model", "A finished run or, with images, its model folder.", "RUN|MODEL_FOLDER"),
        path_option(
            "images",
            "Images, or folders of images [some right and wrong answers of the run's test part].",
            "IMAGE_OR_FOLDER",
            nargs="*",
        ),
        Option("--label", "Class to explain for every image [what is predicted].", keywords={"metavar": "CLASS"}),
        Option("--map", "grad-cam, or rollout: the attention of a ViT [grad-cam].", keywords={"default": "grad-cam"}),
        *map(setting_option, _READING),
        *output_options("Folder to make [twinbud-explanations; without images RUN/explanations]."),
    ]


def _export() -> list[Option]:
    number = {"default": SUPPRESS, "metavar": "NUMBER"}
    compiled = {"dest": "measure_compiled", "action": "store_false"}
    return [
        path_option("model", "A finished run, or its model folder.", "RUN|MODEL_FOLDER"),
        Option("--format", "Format of the file [onnx].", keywords={"metavar": "onnx", "default": "onnx"}),
        flag("--int8", "Quantize to 8 bits, if that is faster on this machine and as accurate."),
        Option("--tolerance", "Largest difference of a logit from torch's [0.001].", keywords=number),
        Option("--opset", "Version of ONNX's operators, 18 to 23 [23].", keywords=number),
        flag("--no-compiled", "Do not measure compiled torch, which takes a minute.", **compiled),
        *output_options("File to write [RUN.onnx, or RUN.int8.onnx].", "FILE.onnx"),
    ]


def _report() -> list[Option]:
    text = "Page to write instead of the report.html and the model card of the run."
    return [path_option("run", "Output of 'twinbud train'.", "RUN"), *output_options(text, "FILE.html")]


def _audit() -> list[Option]:
    data = "Folder of class folders, CSV file, or a set by name, as 'twinbud train' takes it with --data."
    split = "split.csv of a run, to examine that split [the split in the data, if it has one]."
    cache = "Read the images again, and do not keep thumbnails in the cache folder."
    return [
        Option("data", data, keywords={"metavar": "DATA", "type": not_empty("DATA")}),
        path_option("--split", split, "FILE"),
        *(setting_option(name) for name in _IMAGES if name != "data"),
        setting_option("max_megapixels"),
        flag("--no-pixel-cache", cache, dest="pixel_cache", action="store_false"),
        *output_options(
            "Folder to make, with audit.html and audit.json [twinbud-audit].", default=Path("twinbud-audit")
        ),
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
        path_option("recipe", "The recipe, such as those in recipes/paper/.", "RECIPE.yaml"),
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
        flag("--keep-models", "Keep the trained model of every run."),
        flag("--no-pixel-cache", cache, dest="pixel_cache", action="store_false"),
        flag("--dry-run", "Print the plan and the estimated time, and stop."),
    ]


def _tables() -> list[Option]:
    return [
        path_option("recipe", "The recipe given to 'twinbud study'.", "RECIPE.yaml"),
        _study_folder("Runs folder of 'twinbud study'"),
        path_option("--output", "Folder for the tables [RUNS/tables].", "DIR"),
    ]


def _datasets() -> list[Option]:
    return [
        flag("--json", "Print all facts as JSON."),
        path_option("--data-root", "Look for copies in this folder [where sets are downloaded to].", "FOLDER"),
    ]


def _families() -> list[Option]:
    name = "Network as --teacher spells it: show which tensors share each width, and prove it."
    return [
        Option("network", name, keywords={"metavar": "NAME", "nargs": "?"}),
        setting_option("family"),
        flag("--json", "Print all facts as JSON."),
    ]


def _study_folder(text: str) -> Option:
    return path_option("--runs", f"{text} [{STUDY_FOLDER}].", "DIR", default=STUDY_FOLDER)


OPTIONS: dict[str, tuple[str, Callable[[], list[Option]]]] = {
    "demo": ("[--output DIR] [--force]", _demo),
    "train": ("--data PATH|NAME (--teacher T | --selected DIR) [options] --output RUN", _train),
    "evaluate": ("RUN [--data PATH|NAME] [options] [--output DIR]", _evaluate),
    "calibrate": ("RUN [--on auto|folds|val] [--data PATH|NAME] [options]", _calibrate),
    "compare": ("RUN RUN... [--folds N] [--json]", _compare),
    "predict": ("RUN|MODEL_FOLDER IMAGE_OR_FOLDER... [options] [--output FILE.csv]", _predict),
    "explain": ("RUN|MODEL_FOLDER [IMAGE_OR_FOLDER...] [options] [--output DIR]", _explain),
    "export": ("RUN|MODEL_FOLDER [--int8] [options] [--output FILE.onnx]", _export),
    "report": ("RUN [--output FILE.html] [--force]", _report),
    "select": ("--teacher T [--student half|quarter|NAME] [options] --output DIR", _select),
    "teach": ("--architecture NAME --from TEACHER --data PATH [--split FILE] [options] --output DIR", _teach),
    "audit": ("DATA [--split FILE] [options] [--output DIR]", _audit),
    "study": ("RECIPE.yaml [--data NAME=PATH]... [options] [--runs DIR]", _study),
    "datasets": ("[--json] [--data-root FOLDER]", _datasets),
    "families": ("[NAME] [--family described|auto] [--json]", _families),
    "tables": ("RECIPE.yaml [--runs DIR] [--output DIR]", _tables),
}
"""Of each command, how it is called, and its options."""
