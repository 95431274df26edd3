"""Keeps what exporters and quantizers print, log and warn of away from the user: the gate judges what they made."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def silence() -> Iterator[None]:
    """Drop output, warnings and log records below ERROR while the context is open."""
    before = logging.root.manager.disable
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings(action="ignore"):
        logging.disable(max(before, logging.WARNING))
        try:
            yield
        finally:
            logging.disable(before)
