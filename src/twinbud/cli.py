"""The command line: words to calls, no logic.

Only this file and the settings are read before a command is known, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import re
import sys
from argparse import SUPPRESS, Action
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from jsonargparse._core import ArgumentGroup

from twinbud.config import PROFILES, DataConfig, ModelConfig, TrainingConfig
from twinbud.errors import Stopped, TwinbudError, unknown_choice
from twinbud.settings import STAGES, Stage, read_settings_file, run_config, setting_names, stage_config
from twinbud.study import command_line

USER_ERROR = 2
STOPPED = 75
INTERRUPTED = 130


_HANDLING = ("output", "force", "resume", "checkpoint_seconds")
"""Options of a run that are no settings: they change no number."""


class _Parser(ArgumentParser):
    """Answers a wrong word with one line and the tip, not with the whole usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print and leave."""
        del ex
        command = self.prog.rpartition(" ")[2]
        program = f"twinbud {command}" if command in _OPTIONS else "twinbud"
        print(f"twinbud: {_plain(message)} For what is valid run: {program} --help", file=sys.stderr)
        sys.exit(USER_ERROR)


def _plain(message: str) -> str:
    """The parser's message as one line, with the valid words where it leaves them out."""
    line = " ".join(message.split())
    if match := re.match(r"unrecognized arguments: (--[\w-]+)", line, re.IGNORECASE):
        names = (*setting_names(), *_HANDLING, *command_line.OPTIONS, "config")
        options = [f"--{name.replace('_', '-')}" for name in names]
        return str(unknown_choice("option", match[1], sorted(options)))
    if match := re.match(r"the following arguments are required: (.*)", line):
        names = (name.rpartition(".")[2] for name in match[1].split(", "))
        return f"expected {', '.join(f'--{n}' if n == 'output' else n.upper() for n in names)}, got none."
    return line if line.endswith((".", "?")) else f"{line}."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 2 to be put right, 75 stopped and resumable, 130 interrupted)."""
    chosen = build_parser().parse_args(None if arguments is None else list(arguments))
    try:
        _COMMANDS[chosen.subcommand](chosen[chosen.subcommand])
    except TwinbudError as error:
        print(f"twinbud: {error}", file=sys.stderr)
        return USER_ERROR
    except Stopped as stop:
        print(f"twinbud: {stop}", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print("twinbud: stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read our output has gone: there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def build_parser() -> ArgumentParser:
    """The whole command line, one sub-command a stage."""
    form: Any = {"formatter_class": _Formatter, "allow_abbrev": False}
    parser = _Parser(prog="twinbud", description=DESCRIPTION, usage="twinbud COMMAND ...", **form)
    commands = parser.add_subcommands(
        title="commands", description="'twinbud COMMAND --help' tells more of each.", metavar="COMMAND", help=""
    )
    for name, (text, usage, fill) in _OPTIONS.items():
        command = _Parser(description=text, usage=f"twinbud {name} {usage}", **form)
        fill(command)
        commands.add_subcommand(name, command, help=text)
    return parser


class _Formatter(DefaultHelpFormatter):
    """Help without the Python types, which the sentences make plain."""

    def _get_help_string(self, action: Action) -> str:
        return action.help or ""


DESCRIPTION = "Grow a small, trustworthy medical-image classifier from a large pretrained model."


def _add_setting(parser: ArgumentParser | ArgumentGroup, kind: Stage, name: str) -> None:
    """One option from one field; what is not given stays out, so that the profile can decide.

    Values stay words here: the settings read and check them, alike from the command line and from a file.
    """
    setting: Field[Any] = next(field for field in fields(kind) if field.name == name)
    text = f"{setting.metadata['help']}{_default(setting)}"
    option, hint = f"--{name.replace('_', '-')}", get_type_hints(kind)[name]
    if hint is bool:
        parser.add_argument(option, action="store_true", default=SUPPRESS, help=text)
    else:
        metavar = "|".join(get_args(hint)) if get_origin(hint) is Literal else name.rpartition("_")[2].upper()
        parser.add_argument(option, default=SUPPRESS, metavar=metavar, help=text)


def _default(setting: Field[Any]) -> str:
    others = [f"{profile}: {changes[setting.name]}" for profile, changes in PROFILES.items() if setting.name in changes]
    if setting.default in (None, False):
        return f" [{', '.join(others)}]" if others else ""
    value = f"{setting.default:.3g}" if isinstance(setting.default, float) else str(setting.default)
    return f" [{', '.join([value, *others])}]"


def _train_options(parser: ArgumentParser) -> None:
    text = "YAML file of any of these settings, by name; words on the command line win."
    parser.add_argument("--config", type=Path | None, metavar="FILE.yaml", help=text)
    _add_output(parser, "Run folder to make.", required=True)
    parser.add_argument("--resume", action="store_true", help="Go on with an unfinished run, from its last checkpoint.")
    text = "Seconds of training between two checkpoints, at an epoch's end [60]."
    parser.add_argument("--checkpoint-seconds", type=float, default=60.0, metavar="SECONDS", help=text)
    for stage, kind in STAGES.items():
        group = parser.add_argument_group(stage, description=str(kind.__doc__).partition("\n")[0])
        for setting in fields(kind):
            _add_setting(group, kind, setting.name)


def _select_options(parser: ArgumentParser) -> None:
    for name in ("teacher", "student", "rule", "attention", "swap_roles"):
        _add_setting(parser, ModelConfig, name)
    _add_setting(parser, TrainingConfig, "seed")
    parser.add_argument(
        "--weights", type=Literal["float32", "float16"], default="float32", help="Precision of the files [float32]."
    )
    _add_output(parser, "Folder to make.", required=True)


def _evaluate_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="Output of 'twinbud train'.")
    for name in _SOURCE_SETTINGS:
        _add_setting(parser, DataConfig, name)
    _add_output(parser, "Folder for metrics.json and predictions.csv.", required=False)


def _predict_options(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="RUN|MODEL_FOLDER", help="A finished run, or its model folder.")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE_OR_FOLDER", help="What to classify.")
    for name in ("skip_broken", "max_megapixels"):
        _add_setting(parser, DataConfig, name)
    parser.add_argument("--output", type=Path | None, metavar="FILE.csv", help="Write here instead of printing.")


def _demo_options(parser: ArgumentParser) -> None:
    _add_output(parser, "Folder to make [twinbud-demo].", required=False)


def _add_output(parser: ArgumentParser, text: str, *, required: bool) -> None:
    parser.add_argument("--output", type=Path | None, required=required, metavar="DIR", help=text)
    parser.add_argument("--force", action="store_true", help="Replace an earlier output.")


_SOURCE_SETTINGS = (
    "data", "image_column", "label_column", "patient_column", "split_column", "skip_broken", "max_megapixels",
)  # fmt: skip
_OPTIONS: dict[str, tuple[str, str, Callable[[ArgumentParser], None]]] = {
    "demo": (
        "Watch the main job on generated images: grown from a teacher against trained from scratch.",
        "[--output DIR] [--force]",
        _demo_options,
    ),
    "select": (
        "Select the weights of S and S′ from a teacher, to be trained elsewhere.",
        "--teacher T [--student half|NAME] [options] --output DIR",
        _select_options,
    ),
    "train": (
        "Select, train, evaluate and deliver a small model; makes a run folder.",
        "--data PATH (--teacher T | --selected DIR) [options] --output RUN",
        _train_options,
    ),
    "evaluate": (
        "Measure a finished run on its own test images, or on others.",
        "RUN [--data PATH] [options] [--output DIR]",
        _evaluate_options,
    ),
    "predict": (
        "Classify images with a finished run or a model folder.",
        "RUN|MODEL_FOLDER IMAGE_OR_FOLDER... [options] [--output FILE.csv]",
        _predict_options,
    ),
    "study": (
        "Do all runs of a recipe, such as a table of the paper; stopped at any time, it goes on where it was.",
        "RECIPE.yaml [--data NAME=PATH]... [options] [--runs DIR]",
        command_line.study_options,
    ),
    "tables": (
        "Put the finished runs of a recipe into tables and figures.",
        "RECIPE.yaml [--runs DIR] [--output DIR]",
        command_line.tables_options,
    ),
}
"""Of each command: what it does, how it is called, and its options."""


def _given(chosen: Namespace) -> dict[str, Any]:
    """The settings that were given, by name."""
    return {name: chosen[name] for name in setting_names() if name in chosen}


def _demo(chosen: Namespace) -> None:
    from twinbud.demo import demo
    from twinbud.progress import TerminalProgress
    from twinbud.report.terminal import show_demo

    show_demo(demo(chosen.output or Path("twinbud-demo"), force=chosen.force, progress=TerminalProgress()))


def _select(chosen: Namespace) -> None:
    from twinbud.models.selected import select_to_folder
    from twinbud.report.terminal import show_selection

    given = _given(chosen)
    selection = select_to_folder(
        stage_config(ModelConfig, given),
        chosen.output,
        seed=stage_config(TrainingConfig, given).seed,
        half_precision=chosen.weights == "float16",
        force=chosen.force,
    )
    show_selection(selection, chosen.output)


def _train(chosen: Namespace) -> None:
    from twinbud.pipeline import train
    from twinbud.progress import TerminalProgress
    from twinbud.report.terminal import show_run

    saved = read_settings_file(chosen.config) if chosen.config else {}
    handling = {name: chosen[name] for name in _HANDLING}
    config = run_config({**saved, **_given(chosen)}, **handling)
    show_run(train(config, TerminalProgress()))


def _evaluate(chosen: Namespace) -> None:
    from twinbud.apply import evaluate_run
    from twinbud.progress import TerminalProgress
    from twinbud.report.terminal import show_evaluation

    evaluation = evaluate_run(
        chosen.run, _given(chosen), output=chosen.output, force=chosen.force, progress=TerminalProgress()
    )
    show_evaluation(evaluation, chosen.output)


def _predict(chosen: Namespace) -> None:
    from twinbud.apply import predict
    from twinbud.evaluation.predictions import write_predictions
    from twinbud.progress import TerminalProgress
    from twinbud.report.terminal import show_ignored, show_predictions

    data = stage_config(DataConfig, _given(chosen))
    predictions, ignored = predict(
        chosen.model,
        chosen.images,
        skip_broken=data.skip_broken,
        max_megapixels=data.max_megapixels,
        progress=TerminalProgress(),
    )
    if chosen.output is None:
        show_predictions(predictions)
    else:
        write_predictions(chosen.output, predictions)
    show_ignored(ignored)


_COMMANDS = {
    "demo": _demo,
    "select": _select,
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "study": command_line.study,
    "tables": command_line.tables,
}
