"""Run the commands that errors print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def run_advice(message: str) -> str:
    """Run the ``python`` command in an error with a shell, as a user would; returns what it prints."""
    match = re.search(r"run: (python .+?) \(it ", message, re.IGNORECASE)
    assert match, f"no command in: {message}"
    source = Path(__file__).resolve().parents[2] / "src"
    paths = os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        match[1].replace("python", f'"{sys.executable}"', 1),
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
