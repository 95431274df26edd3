"""A process that works in a run folder. It is spawned, and a library installs modules named like those of the tests."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

from twinbud.runs.run_dir import started_run


def hold(run: Path, receiver: Connection) -> None:
    """Start a run in the folder, say so, and keep it until a word is received."""
    with started_run(run, force=False):
        receiver.send("started")
        receiver.recv()
