"""The command line in this process, and what a user sees of it."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from twinbud.cli.main import main

SMALL = (
    "--profile", "paper", "--image-size", 28, "--epochs", 1, "--batch-size", 8, "--precision", "float32"
)  # fmt: skip
"""Settings of a run that takes a second."""


@dataclass(frozen=True)
class Answer:
    """An exit code, and all that was printed."""

    code: int
    out: str
    err: str


def twinbud(*words: object) -> Answer:
    """Run one command."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as left:
            code = int(left.code or 0)
    return Answer(code, out.getvalue(), err.getvalue())


def train(data: Path | str, teacher: str, output: Path, *words: object) -> Answer:
    """Run ``twinbud train`` at the smallest settings; later words win."""
    return twinbud("train", "--data", data, "--teacher", teacher, "--output", output, *SMALL, *words)


def trained(data: Path | str, teacher: str, output: Path, *words: object) -> Path:
    """The folder of a run that ended well."""
    answer = train(data, teacher, output, *words)
    assert answer.code == 0, answer.err
    return output


def refusal(answer: Answer) -> str:
    """The one line that a refused command ends with; progress may stand before it."""
    assert answer.code == 2, answer
    assert answer.out == ""
    *before, line = answer.err.splitlines()
    assert line.startswith("twinbud: ")
    assert line.endswith((".", "?", "--help"))
    progress = (
        "compilation: ", "reading headers: ", "decoding: ", "looking for near-duplicates: ", "training ",
        "fold ", "cross-validating ", "exporting ", "comparing with torch: ", "quantizing ",
    )  # fmt: skip
    assert all(text.startswith(progress) for text in before), answer.err
    return line.removeprefix("twinbud: ")
