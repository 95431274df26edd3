"""The command line: words to calls, no logic.

Only this file and the settings are read before a command is known, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import re
import sys
from argparse import SUPPRESS, Action
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from jsonargparse._core import ArgumentGroup

from twinbud.config import PROFILES, DataConfig, ModelConfig, TrainingConfig
from twinbud.errors import Stopped, TwinbudError, unknown_choice
from twinbud.files import require_unicode
from twinbud.settings import STAGES, Stage, read_settings_file, run_config, setting_names, stage_config, with_words

USER_ERROR = 2
STOPPED = 75
INTERRUPTED = 130


_HANDLING = ("output", "force", "resume", "checkpoint_seconds", "pixel_cache")
"""Options of a run that are no settings: they change no number."""


class _Parser(ArgumentParser):
    """Answers a wrong word with one line and the tip, not with the whole usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print and leave."""
        del ex
        command = self.prog.rpartition(" ")[2]
        program = f"twinbud {command}" if command in COMMANDS else "twinbud"
        print(f"twinbud: {self._plain(message)} For what is valid run: {program} --help", file=sys.stderr)
        sys.exit(USER_ERROR)

    def _plain(self, message: str) -> str:
        """The parser's message as one line, with the valid words where it leaves them out."""
        line = " ".join(message.split())
        if match := re.match(r"unrecognized arguments: (--[\w-]+)", line, re.IGNORECASE):
            shown = [action.option_strings for action in self._actions if action.help != SUPPRESS]
            return str(unknown_choice("option", match[1], sorted(names[-1] for names in shown if names)))
        if match := re.match(r"argument COMMAND: invalid choice: '(.*)' \(choose from", line):
            return str(unknown_choice("COMMAND", match[1], COMMANDS))
        if match := re.match(r"the following arguments are required: (.*)", line):
            names = (name.rpartition(".")[2] for name in match[1].split(", "))
            return f"expected {', '.join(f'--{n}' if n == 'output' else n.upper() for n in names)}, got none."
        return line if line.endswith((".", "?")) else f"{line}."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 2 to be put right, 75 stopped and resumable, 130 interrupted)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        require_unicode(words)
        chosen = build_parser().parse_args(words)
        COMMANDS[chosen.subcommand].run(chosen[chosen.subcommand])
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
    parser = _Parser(prog="twinbud", description=DESCRIPTION, usage="twinbud COMMAND ...", version=_version(), **form)
    commands = parser.add_subcommands(
        title="commands", description="'twinbud COMMAND --help' tells more of each.", metavar="COMMAND", help=""
    )
    for name, command in COMMANDS.items():
        words = _Parser(description=command.text, usage=f"twinbud {name} {command.usage}", **form)
        command.add_options(words)
        commands.add_subcommand(name, words, help=command.text)
    return parser


def _version() -> str:
    try:
        return version("twinbud")
    except PackageNotFoundError:
        return "of a checkout that is not installed"


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
    _add_output(parser, "Write here instead of printing.", required=False, metavar="FILE.csv")


def _demo_options(parser: ArgumentParser) -> None:
    _add_output(parser, "Folder to make [twinbud-demo].", required=False)


def _add_output(parser: ArgumentParser, text: str, *, required: bool, metavar: str = "DIR") -> None:
    parser.add_argument("--output", type=Path | None, required=required, metavar=metavar, help=text)
    parser.add_argument("--force", action="store_true", help="Replace an earlier output.")


_SOURCE_SETTINGS = (
    "data", "image_column", "label_column", "patient_column", "split_column", "skip_broken", "max_megapixels",
)  # fmt: skip


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
    config = run_config(with_words(saved, _given(chosen)), **handling)
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
    from twinbud.progress import TerminalProgress
    from twinbud.report.terminal import show_ignored, show_predictions

    data = stage_config(DataConfig, _given(chosen))
    predictions, ignored = predict(
        chosen.model,
        chosen.images,
        skip_broken=data.skip_broken,
        max_megapixels=data.max_megapixels,
        output=chosen.output,
        force=chosen.force,
        progress=TerminalProgress(),
    )
    if chosen.output is None:
        show_predictions(predictions)
    show_ignored(ignored)


@dataclass(frozen=True, kw_only=True)
class _Command:
    """What a command does, how it is called, its options, and the call that its words become."""

    text: str
    usage: str
    add_options: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], None]


COMMANDS = {
    "demo": _Command(
        text="Watch the main job on generated images: grown from a teacher against trained from scratch.",
        usage="[--output DIR] [--force]",
        add_options=_demo_options,
        run=_demo,
    ),
    "select": _Command(
        text="Select the weights of S and S′ from a teacher, to be trained elsewhere.",
        usage="--teacher T [--student half|NAME] [options] --output DIR",
        add_options=_select_options,
        run=_select,
    ),
    "train": _Command(
        text="Select, train, evaluate and deliver a small model; makes a run folder.",
        usage="--data PATH (--teacher T | --selected DIR) [options] --output RUN",
        add_options=_train_options,
        run=_train,
    ),
    "evaluate": _Command(
        text="Measure a finished run on its own test images, or on others.",
        usage="RUN [--data PATH] [options] [--output DIR]",
        add_options=_evaluate_options,
        run=_evaluate,
    ),
    "predict": _Command(
        text="Classify images with a finished run or a model folder.",
        usage="RUN|MODEL_FOLDER IMAGE_OR_FOLDER... [options] [--output FILE.csv]",
        add_options=_predict_options,
        run=_predict,
    ),
}
