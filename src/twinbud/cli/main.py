"""The command line: finds the command, parses its options, and reports errors in one line.

Only the table of commands is read before a command is known, so that ``twinbud --help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from twinbud.cli.streams import tolerant_streams
from twinbud.core.cache import use_temporary_home
from twinbud.core.errors import ReportedElsewhereError, Stopped, TwinbudError, unknown_choice
from twinbud.core.files import require_unicode
from twinbud.core.launch import is_first_of_machine, require_single_process

USER_ERROR = 2
STOPPED = 75
INTERRUPTED = 130

DESCRIPTION = "Train a small, trustworthy medical-image classifier from a large pretrained teacher."
COMMANDS = {
    "demo": "Compare a random start, the method of the paper and the recommended recipe on generated images.",
    "train": "Train, evaluate and save a student; the result is a run folder.",
    "evaluate": "Evaluate a finished run on its own test images, or on others.",
    "calibrate": "Calibrate the probabilities of a finished run, and measure how far they can be trusted.",
    "compare": "Compare finished runs by cross-validation on their labelled images; no test part is opened.",
    "predict": "Classify images with a finished run or a model folder.",
    "explain": "Map what predictions depend on, and check whether the maps mean anything.",
    "export": "Write the trained classifier as one ONNX file, if it computes what torch computes.",
    "report": "Write the page and the model card of a finished run again, without images or teacher.",
    "select": "Select the weights of student and auxiliary from a teacher, for training on another machine.",
    "teach": "Train a teacher of one's own: a network learns another one's features, without labels.",
    "audit": "Look for copies, leaks, wrong labels, shortcuts and broken files in a set of images.",
    "study": "Execute all runs of a recipe, such as a table of the paper; can be stopped and continued.",
    "datasets": "List the public image sets that --data takes by name, and which are on this machine.",
    "families": "List the network families that weights are selected from, or the widths of one network.",
    "tables": "Write tables and figures of a recipe's finished runs.",
}
"""Each command with one sentence; its options are in ``options.py`` and what it calls in ``commands.py``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 done, 2 user error, 75 stopped and can be resumed, 130 interrupted.
    """
    with tolerant_streams():
        return _exit_code(list(sys.argv[1:] if arguments is None else arguments))


def _exit_code(words: list[str]) -> int:
    try:
        use_temporary_home()
        require_unicode(words)
        if words[:1] in (["--help"], ["-h"]):
            print(_contents())
        elif words[:1] == ["--version"]:
            print(f"twinbud {_version()}")
        else:
            _run(words)
    except TwinbudError as error:
        return _end(USER_ERROR, str(error))
    except Stopped as stop:
        return _end(STOPPED, str(stop))
    except KeyboardInterrupt:
        return _end(INTERRUPTED, "interrupted")
    except ReportedElsewhereError as reported:
        return reported.exit_code
    return 0


def _end(code: int, text: str) -> int:
    """Say why the command ends, once a machine."""
    if is_first_of_machine():
        print(f"twinbud: {text}", file=sys.stderr)
    return code


def _run(words: list[str]) -> None:
    if not words:
        raise TwinbudError("no command is given", fix="Run: twinbud --help")
    if words[0].startswith("-"):
        raise TwinbudError(f"'{words[0]}' is not a command", fix="Run: twinbud --help")
    if words[0] not in COMMANDS:
        raise unknown_choice("COMMAND", words[0], COMMANDS)
    if words[0] != "train":
        require_single_process(f"twinbud {words[0]}")
    from twinbud.cli import commands
    from twinbud.cli.options import parse

    commands.RUN[words[0]](parse(words, COMMANDS[words[0]]))


def _contents() -> str:
    lines = [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    usage = "usage: twinbud COMMAND [options]\n       twinbud COMMAND --help\n       twinbud --version"
    return "\n".join([usage, "", DESCRIPTION, "", "commands:", *lines])


def _version() -> str:
    try:
        return version("twinbud")
    except PackageNotFoundError:
        return "(a checkout that is not installed)"
