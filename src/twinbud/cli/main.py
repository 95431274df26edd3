"""The command line: words to calls, no logic.

Only this file, the options and the settings are read before a command is known, so that ``--help`` answers at once.
"""

from __future__ import annotations

import re
import sys
from argparse import SUPPRESS, Action, _SubParsersAction
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from twinbud.cli import options, study
from twinbud.cli.streams import require_written, tolerant_streams
from twinbud.config.loading import read_settings_file, run_config, setting_names, stage_config, with_words
from twinbud.config.schema import DataConfig, ModelConfig, TrainingConfig
from twinbud.core.cache import use_temporary_home
from twinbud.core.errors import Stopped, TwinbudError, unknown_choice
from twinbud.core.files import require_unicode

USER_ERROR = 2
STOPPED = 75
INTERRUPTED = 130


class _Parser(ArgumentParser):
    """Answers a wrong word with one line and the tip, not with the whole usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print and leave."""
        del ex
        missing = re.match(r"the following arguments are required: (\w+)\.", " ".join(message.split()))
        command = missing[1] if missing else self.prog.rpartition(" ")[2]
        program = f"twinbud {command}" if command in COMMANDS else "twinbud"
        print(f"twinbud: {self._plain(message)} For what is valid run: {program} --help", file=sys.stderr)
        sys.exit(USER_ERROR)

    def _word(self, name: str) -> str:
        """What the usage calls a required word, of which the parser knows ``command.name``."""
        command, _, option = name.rpartition(".")
        parsers = (action.choices for action in self._actions if isinstance(action, _SubParsersAction))
        actions = next(parsers)[command]._actions if command else self._actions
        action = next(action for action in actions if action.dest == option)
        return action.option_strings[0] if action.option_strings else str(action.metavar)

    def _plain(self, message: str) -> str:
        """The parser's message as one line, with the valid words where it leaves them out."""
        line = " ".join(message.split())
        if match := re.match(r"unrecognized arguments: (--[\w-]+)", line, re.IGNORECASE):
            shown = [action.option_strings for action in self._actions if action.help != SUPPRESS]
            return str(unknown_choice("option", match[1], sorted(names[-1] for names in shown if names)))
        if match := re.match(r"argument COMMAND: invalid choice: '(.*)' \(choose from", line):
            return str(unknown_choice("COMMAND", match[1], COMMANDS))
        if match := re.match(r"the following arguments are required: (.*)", line):
            return f"expected {', '.join(map(self._word, match[1].split(', ')))}, got none."
        return line if line.endswith((".", "?")) else f"{line}."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 2 to be put right, 75 stopped and resumable, 130 interrupted)."""
    with tolerant_streams():
        return _run(list(sys.argv[1:] if arguments is None else arguments))


def _run(words: list[str]) -> int:
    try:
        use_temporary_home()
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


def _given(chosen: Namespace) -> dict[str, Any]:
    """The settings that were given, by name."""
    return {name: chosen[name] for name in setting_names() if name in chosen}


def _demo(chosen: Namespace) -> None:
    from twinbud.cli.console import show_demo
    from twinbud.core.progress import TerminalProgress
    from twinbud.runs.demo import demo

    show_demo(demo(chosen.output or Path("twinbud-demo"), force=chosen.force, progress=TerminalProgress()))


def _select(chosen: Namespace) -> None:
    from twinbud.cli.console import show_selection
    from twinbud.models.selection_io import select_to_folder

    given = _given(chosen)
    if chosen.weights not in options.WEIGHTS:
        raise unknown_choice("--weights", chosen.weights, options.WEIGHTS)
    selection = select_to_folder(
        stage_config(ModelConfig, given),
        chosen.output,
        seed=stage_config(TrainingConfig, given).seed,
        half_precision=chosen.weights == "float16",
        force=chosen.force,
    )
    show_selection(selection, chosen.output)


def _train(chosen: Namespace) -> None:
    from twinbud.cli.console import show_run
    from twinbud.core.progress import TerminalProgress
    from twinbud.runs.pipeline import train

    saved = read_settings_file(chosen.config) if chosen.config else {}
    handling = {name: chosen[name] for name in options.HANDLING}
    settings = with_words(saved, _given(chosen))
    if "data" not in settings:
        fix = "Give a folder of class folders, a CSV, or 'phantom' for generated images"
        raise TwinbudError("images", got="none", where="--data", fix=fix)
    config = run_config(settings, **handling)
    show_run(train(config, TerminalProgress()))


def _evaluate(chosen: Namespace) -> None:
    from twinbud.cli.console import show_evaluation
    from twinbud.core.progress import TerminalProgress
    from twinbud.runs.inference import evaluate_run

    evaluation = evaluate_run(
        chosen.run,
        _given(chosen),
        output=chosen.output,
        force=chosen.force,
        logits=chosen.logits,
        progress=TerminalProgress(),
    )
    show_evaluation(evaluation, chosen.output)


def _predict(chosen: Namespace) -> None:
    from twinbud.cli.console import show_ignored, show_note, show_predictions
    from twinbud.core.progress import TerminalProgress
    from twinbud.runs.inference import predict

    data = stage_config(DataConfig, _given(chosen))
    predictions, ignored = predict(
        chosen.model,
        chosen.images,
        skip_broken=data.skip_broken,
        max_megapixels=data.max_megapixels,
        output=chosen.output,
        force=chosen.force,
        logits=chosen.logits,
        progress=TerminalProgress(),
    )
    if chosen.output is None:
        show_predictions(predictions, logits=chosen.logits)
        require_written("the predictions")
    show_ignored(ignored)
    if ignored:
        show_note(f"{len(predictions.paths):,} images classified, {len(ignored):,} files left out")


def _report(chosen: Namespace) -> None:
    from twinbud.cli.console import show_written
    from twinbud.runs.report import rebuild_report

    show_written(rebuild_report(chosen.run, output=chosen.output, force=chosen.force))


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
        add_options=options.demo_options,
        run=_demo,
    ),
    "select": _Command(
        text="Select the weights of S and S′ from a teacher, to be trained elsewhere.",
        usage="--teacher T [--student half|NAME] [options] --output DIR",
        add_options=options.select_options,
        run=_select,
    ),
    "train": _Command(
        text="Select, train, evaluate and deliver a small model; makes a run folder.",
        usage="--data PATH (--teacher T | --selected DIR) [options] --output RUN",
        add_options=options.train_options,
        run=_train,
    ),
    "evaluate": _Command(
        text="Measure a finished run on its own test images, or on others.",
        usage="RUN [--data PATH] [options] [--output DIR]",
        add_options=options.evaluate_options,
        run=_evaluate,
    ),
    "predict": _Command(
        text="Classify images with a finished run or a model folder.",
        usage="RUN|MODEL_FOLDER IMAGE_OR_FOLDER... [options] [--output FILE.csv]",
        add_options=options.predict_options,
        run=_predict,
    ),
    "report": _Command(
        text="Write the page and the model card of a finished run again, without images or teacher.",
        usage="RUN [--output FILE.html] [--force]",
        add_options=options.report_options,
        run=_report,
    ),
    "study": _Command(
        text="Do all runs of a recipe, such as a table of the paper; stopped at any time, it goes on where it was.",
        usage="RECIPE.yaml [--data NAME=PATH]... [options] [--runs DIR]",
        add_options=study.study_options,
        run=study.study,
    ),
    "tables": _Command(
        text="Put the finished runs of a recipe into tables and figures.",
        usage="RECIPE.yaml [--runs DIR] [--output DIR]",
        add_options=study.tables_options,
        run=study.tables,
    ),
}
