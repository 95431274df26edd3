"""What cannot be printed never ends a command, and exit codes stay right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TWINBUD = f"{sys.executable} -m twinbud"


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], capture_output=True, env=os.environ | environment, check=False
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
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
def test_a_finished_command_exits_with_0_wherever_it_prints(
    redirection: str, environment: dict[str, str], shared_teacher: str, tmp_path: Path
) -> None:
    """``select`` prints a table with arrows and primes at its end."""
    done = shell(
        f"{TWINBUD} select --teacher {shared_teacher} --output {tmp_path / 'selected'} {redirection}", **environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert (tmp_path / "selected" / "plan.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_predictions_that_are_lost_on_a_full_disk_are_an_error(shared_run: Path, shared_images: Path) -> None:
    done = shell(f"{TWINBUD} predict {shared_run} {shared_images / 'dark'} > /dev/full")
    assert done.returncode == 2
    assert b"twinbud: standard output: the predictions could not be written" in done.stderr


def test_an_error_exits_with_2_even_if_it_cannot_be_printed(tmp_path: Path) -> None:
    assert shell(f"{TWINBUD} evaluate {tmp_path} 2>&-").returncode == 2
