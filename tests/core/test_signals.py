"""A signal asks a process to stop, unless the process ignores it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from twinbud.core.signals import SIGNALS, stop_on_signal


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Heed every signal, also where the tests were started with one ignored, as ``nohup`` does."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_the_second_one_ends_the_process(number: signal.Signals) -> None:
    asked: list[bool] = []
    before = signal.getsignal(number)
    with stop_on_signal(lambda: asked.append(True)):
        os.kill(os.getpid(), number)
        assert asked == [True]
        assert all(signal.getsignal(each) == signal.SIG_DFL for each in SIGNALS)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("ignored", SIGNALS)
def test_an_ignored_signal_stays_ignored_and_the_others_ask(ignored: signal.Signals) -> None:
    """A shell starts background jobs with SIGINT ignored; nohup ignores SIGHUP."""
    signal.signal(ignored, signal.SIG_IGN)
    asked: list[bool] = []
    other = next(number for number in SIGNALS if number != ignored)
    with stop_on_signal(lambda: asked.append(True)):
        os.kill(os.getpid(), ignored)
        assert asked == []
        os.kill(os.getpid(), other)
        assert asked == [True]
        assert signal.getsignal(ignored) == signal.SIG_IGN
    assert signal.getsignal(ignored) == signal.SIG_IGN
