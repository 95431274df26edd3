"""Standard output and error that never end a command: closed, full, or without the character in their encoding."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from twinbud.core.errors import TwinbudError


class TolerantStream:
    """A text stream that drops what cannot be written, and remembers why.

    Args:
        stream: Standard output or error; None where the process was started without it.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or io.StringIO()
        self.error: OSError | ValueError | None = None
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write text, unless the stream has failed."""
        if self.error is None:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:  # ValueError: closed
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Flush, unless the stream has failed."""
        if self.error is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._fail(error)

    def _fail(self, error: OSError | ValueError) -> None:
        self.error = error
        with suppress(OSError, ValueError):  # the rest of the buffer, which Python writes when it exits, goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def tolerant_streams() -> Iterator[None]:
    """Let nothing that is printed while the context lasts end the command."""
    for descriptor in (0, 1, 2):  # a closed one would be reused by the next file that is opened
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = TolerantStream(before[0]), TolerantStream(before[1])
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def require_written(what: str, fix: str = "Give --output FILE") -> None:
    """Refuse to call a command done whose product went to standard output and was lost; a closed pipe is no loss.

    Raises:
        TwinbudError: Standard output could not be written.
    """
    sys.stdout.flush()
    error = getattr(sys.stdout, "error", None)
    if error is not None and not isinstance(error, BrokenPipeError):
        raise TwinbudError(f"{what} could not be written ({error})", where="standard output", fix=fix)
