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

from twinbud.config import PROFILES, STAGES, DataConfig, ModelConfig, TrainingConfig, run_config
from twinbud.errors import TwinbudError, unknown_choice

USER_ERROR = 2
INTERRUPTED = 130


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
    """The parser's message as one line in the words of the command line."""
    line = " ".join(message.split())
    if match := re.match(r'Parser key "(\w+)": (.*)', line):
        *_, got = re.split(r"Got value: |Given value: ", match[2])
        kinds = [_KINDS.get(kind, kind) for kind in re.findall(r"<class '(?:\w+\.)*(\w+)'>", match[2])]
        kinds += [f"'{word}'" for words in re.findall(r"Literal\[([^\]]*)\]", match[2]) for word in _words(words)]
        kinds = [kind for kind in dict.fromkeys(kinds) if kind != "text" or len(kinds) == 1]
        expected = " or ".join(kinds) or "another value"
        return f"--{match[1].replace('_', '-')}: expected {expected}, got '{got}'."
    if match := re.match(r"Subcommand '\w+' does not accept option '(\w+)'", line):
        return str(unknown_choice("--config", match[1], sorted(_setting_names())))
    if match := re.match(r"unrecognized arguments: (--[\w-]+)", line, re.IGNORECASE):
        return str(unknown_choice("option", match[1], sorted(f"--{n.replace('_', '-')}" for n in _setting_names())))
    if match := re.match(r"the following arguments are required: (.*)", line):
        names = (name.rpartition(".")[2] for name in match[1].split(", "))
        return f"expected {', '.join(f'--{n}' if n == 'output' else n.upper() for n in names)}, got none."
    return line if line.endswith((".", "?")) else f"{line}."


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "Path": "a path",
    "NoneType": "none",
}


def _words(choices: str) -> list[str]:
    return [word.strip(" '\"") for word in choices.split(",")]


def _setting_names() -> list[str]:
    return [setting.name for kind in STAGES.values() for setting in fields(kind)] + ["config", "output", "force"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 2 something the user can put right, 130 interrupted)."""
    chosen = build_parser().parse_args(None if arguments is None else list(arguments))
    try:
        _COMMANDS[chosen.subcommand](chosen[chosen.subcommand])
    except TwinbudError as error:
        print(f"twinbud: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("twinbud: stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read our output has gone: there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def build_parser() -> ArgumentParser:
    """The whole command line, one sub-command a stage."""
    parser = _Parser(prog="twinbud", description=DESCRIPTION, usage="twinbud COMMAND ...", formatter_class=_Formatter)
    commands = parser.add_subcommands(
        title="commands", description="'twinbud COMMAND --help' tells more of each.", metavar="COMMAND", help=""
    )
    for name, (text, usage, fill) in _OPTIONS.items():
        command = _Parser(description=text, usage=f"twinbud {name} {usage}", formatter_class=_Formatter)
        fill(command)
        commands.add_subcommand(name, command, help=text)
    return parser


class _Formatter(DefaultHelpFormatter):
    """Help without the Python types, which the sentences make plain."""

    def _get_help_string(self, action: Action) -> str:
        return action.help or ""


DESCRIPTION = "Grow a small, trustworthy medical-image classifier from a large pretrained model."


def _add_setting(parser: ArgumentParser | ArgumentGroup, kind: type, name: str) -> None:
    """One option from one field; what is not given stays out, so that the profile can decide."""
    setting: Field[Any] = next(field for field in fields(kind) if field.name == name)
    hint = get_type_hints(kind)[name]
    text = f"{setting.metadata['help']}{_default(setting)}"
    option = f"--{name.replace('_', '-')}"
    if hint is bool:
        parser.add_argument(option, action="store_true", default=SUPPRESS, help=text)
    elif get_origin(hint) is Literal:
        # the settings check the word themselves, and know the nearest
        parser.add_argument(option, default=SUPPRESS, metavar="|".join(get_args(hint)), help=text)
    else:
        parser.add_argument(option, type=hint, default=SUPPRESS, metavar=name.rpartition("_")[2].upper(), help=text)


def _default(setting: Field[Any]) -> str:
    others = [f"{profile}: {changes[setting.name]}" for profile, changes in PROFILES.items() if setting.name in changes]
    if setting.default in (None, False):
        return f" [{', '.join(others)}]" if others else ""
    value = f"{setting.default:.3g}" if isinstance(setting.default, float) else str(setting.default)
    return f" [{', '.join([value, *others])}]"


def _train_options(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action="config", help="YAML file of any of these settings, by name.")
    _add_output(parser, "Run folder to make.", required=True)
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
}
"""Of each command: what it does, how it is called, and its options."""


def _given(chosen: Namespace, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The settings that were given, by name."""
    known = names or [setting.name for kind in STAGES.values() for setting in fields(kind)]
    return {name: chosen[name] for name in known if name in chosen}


def _demo(chosen: Namespace) -> None:
    from twinbud.demo import demo
    from twinbud.progress import TerminalProgress
    from twinbud.report.terminal import show_demo

    show_demo(demo(chosen.output or Path("twinbud-demo"), force=chosen.force, progress=TerminalProgress()))


def _select(chosen: Namespace) -> None:
    from twinbud.models.selected import select_to_folder
    from twinbud.report.terminal import show_selection

    settings = _given(chosen, ("teacher", "student", "rule", "attention", "swap_roles"))
    folder = select_to_folder(
        ModelConfig(**settings),
        chosen.output,
        seed=chosen.get("seed", 0),
        half_precision=chosen.weights == "float16",
        force=chosen.force,
    )
    show_selection(folder, chosen.output)


def _train(chosen: Namespace) -> None:
    from twinbud.pipeline import train
    from twinbud.progress import TerminalProgress
    from twinbud.report.terminal import show_run

    config = run_config(_given(chosen), output=chosen.output, force=chosen.force)
    show_run(train(config, TerminalProgress()))


def _evaluate(chosen: Namespace) -> None:
    from twinbud.apply import evaluate_run, write_evaluation
    from twinbud.progress import TerminalProgress
    from twinbud.report.terminal import show_evaluation

    given = _given(chosen, _SOURCE_SETTINGS)
    evaluation = evaluate_run(chosen.run, given, progress=TerminalProgress())
    if chosen.output is not None:
        write_evaluation(evaluation, chosen.output, force=chosen.force)
    show_evaluation(evaluation, chosen.output)


def _predict(chosen: Namespace) -> None:
    from twinbud.apply import predict
    from twinbud.evaluation.predictions import write_predictions
    from twinbud.progress import TerminalProgress
    from twinbud.report.terminal import show_ignored, show_predictions

    settings = _given(chosen, ("skip_broken", "max_megapixels"))
    predictions, ignored = predict(chosen.model, chosen.images, **settings, progress=TerminalProgress())
    if chosen.output is None:
        show_predictions(predictions)
    else:
        write_predictions(chosen.output, predictions)
    show_ignored(ignored)


_COMMANDS = {"demo": _demo, "select": _select, "train": _train, "evaluate": _evaluate, "predict": _predict}
