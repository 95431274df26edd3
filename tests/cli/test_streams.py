"""What cannot be printed never ends a command, and exit codes stay right.

Processes show how Python starts and ends; their commands import nothing heavy. Long commands run in this process.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from twinbud.cli.main import main

TWINBUD = f"{sys.executable} -m twinbud"
needs_full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], capture_output=True, env=os.environ | environment, check=False
    )


@needs_full_device
@pytest.mark.parametrize(
    ("redirection", "environment"),
    [
        (">/dev/full 2>/dev/full", {}),
        (">&- 2>&- <&-", {}),
        ("2>&1 | head -c 1", {}),
        ("", {"PYTHONIOENCODING": "ascii", "TERM": "dumb"}),
    ],
    ids=["full", "closed", "a reader that leaves", "ascii"],
)
def test_a_finished_process_exits_with_0_wherever_it_prints(redirection: str, environment: dict[str, str]) -> None:
    done = shell(f"{TWINBUD} train --help {redirection}", **environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""


@needs_full_device
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_an_error_exits_with_2_even_if_it_cannot_be_printed(redirection: str) -> None:
    assert shell(f"{TWINBUD} evaluate {redirection}").returncode == 2


def full_device() -> Any:
    return Path("/dev/full").open("w", encoding="utf-8")


def abandoned_pipe() -> Any:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", encoding="utf-8")


def closed_stream() -> Any:
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS: dict[str, Callable[[], Any]] = {
    "full": full_device,
    "closed": closed_stream,
    "closed before Python started": lambda: None,
    "a reader that leaves": abandoned_pipe,
    "ascii": lambda: io.TextIOWrapper(io.BytesIO(), encoding="ascii"),
}


@needs_full_device
@pytest.mark.parametrize("kind", STREAMS)
def test_a_command_does_its_work_wherever_it_prints(kind: str, shared_teacher: str, tmp_path: Path) -> None:
    """``select`` prints a table with arrows and primes at its end; closing is what Python does last."""
    out, err = STREAMS[kind](), STREAMS[kind]()
    with redirect_stdout(out), redirect_stderr(err):
        assert main(["select", "--teacher", shared_teacher, "--output", str(tmp_path / "selected")]) == 0
    assert (tmp_path / "selected" / "plan.json").exists()
    if kind == "ascii":
        assert b"\\u2192" in out.buffer.getvalue()
    for stream in (out, err):
        if stream is not None:
            stream.close()


@needs_full_device
def test_predictions_that_are_lost_on_a_full_disk_are_an_error(shared_run: Path, shared_images: Path) -> None:
    err = io.StringIO()
    with full_device() as out, redirect_stdout(out), redirect_stderr(err):
        assert main(["predict", str(shared_run), str(shared_images / "dark")]) == 2
    assert "twinbud: standard output: the predictions could not be written" in err.getvalue()


def test_a_reader_of_predictions_that_leaves_early_is_no_error(shared_run: Path, shared_images: Path) -> None:
    with abandoned_pipe() as out, redirect_stdout(out), redirect_stderr(io.StringIO()):
        assert main(["predict", str(shared_run), str(shared_images)]) == 0
