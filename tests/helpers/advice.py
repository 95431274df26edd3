"""Run the commands that errors print."""

from __future__ import annotations

import importlib
import io
import json
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

_PRINT_WORDS = '-S -E -c "import json, sys; print(json.dumps(sys.argv[1:]))"'


def run_advice(message: str) -> str:
    """Run the ``python`` command in an error as a user's shell splits it into words; returns what it prints.

    The shell runs a bare Python that prints the words. The command itself runs in this process, which has imported
    torch already.
    """
    match = re.search(r"run: python (.+?) \(it ", message, re.IGNORECASE)
    assert match, f"no command in: {message}"
    line = f'"{sys.executable}" {_PRINT_WORDS} {match[1]}'
    kind, what, *words = json.loads(subprocess.check_output(line, shell=True, text=True))
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        if kind == "-m":
            assert importlib.import_module(what).main(words) == 0, err.getvalue()
        else:
            assert kind == "-c"
            exec(compile(what, "advice", "exec"), {})
    return out.getvalue()
