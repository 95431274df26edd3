"""Processes that can be killed or stopped, forked from a server that has imported torch once.

A new Python needs ten times the time to import torch that a small run takes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from helpers.command import Answer

FORK_SERVER = get_context("forkserver")
FORK_SERVER.set_forkserver_preload(
    ["twinbud.cli.commands", "twinbud.cli.console", "twinbud.runs.pipeline", "twinbud.study.run"]
)


@dataclass(frozen=True)
class Command:
    """A running ``twinbud`` command.

    Attributes:
        process: The process, the first of a session of its own, as under a terminal.
        log: What it prints goes to files of this name, with the suffixes ``.out`` and ``.err``.
    """

    process: BaseProcess
    log: Path

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended yet."""
        return self.process.exitcode is None

    def wait(self) -> Answer:
        """Wait until the process has ended; minus the signal's number is the code of one that was killed."""
        self.process.join(timeout=240)
        assert self.process.exitcode is not None, f"still running: {self.log}"
        out, err = (self.log.with_suffix(suffix).read_text() for suffix in (".out", ".err"))
        return Answer(self.process.exitcode, out, err)


def start(words: list[str], log: Path, environment: dict[str, str] | None = None) -> Command:
    """Start ``twinbud WORDS``, with further environment variables."""
    process = FORK_SERVER.Process(target=_run, args=(words, log, environment or {}))
    process.start()
    return Command(process, log)


@contextmanager
def started_together(words: list[list[str]], log: Path) -> Iterator[list[Command]]:
    """Start several commands as ``torchrun`` starts the processes of one; none is left when the context ends.

    Args:
        words: Of each process, in the order of their ranks; usually the same.
        log: As for ``Command``, with a number for each process.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    commands = [
        start(each, log.with_name(f"{log.stem}-{rank}"), place | {"RANK": str(rank), "WORLD_SIZE": str(len(words))})
        for rank, each in enumerate(words)
    ]
    try:
        yield commands
    finally:
        for command in commands:
            command.process.kill()
            command.process.join()


def together(words: list[str], log: Path, count: int = 2) -> list[Answer]:
    """Run ``twinbud WORDS`` in several processes that were started together."""
    with started_together([words] * count, log) as commands:
        return [command.wait() for command in commands]


def start_code(code: str) -> BaseProcess:
    """Start a process that executes Python code."""
    process = FORK_SERVER.Process(target=exec, args=(code, {}))
    process.start()
    return process


def _run(words: list[str], log: Path, environment: dict[str, str]) -> None:
    from twinbud.cli.main import main
    from twinbud.study.executors import local

    os.setsid()
    os.environ.update(environment)
    setattr(local, "get_context", lambda method: get_context("fork"))  # noqa: B010  # workers of a study
    for stream, suffix in ((sys.stdout, ".out"), (sys.stderr, ".err")):
        with log.with_suffix(suffix).open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    sys.exit(main(words))
