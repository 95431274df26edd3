"""Fixtures of all tests: a cache of their own, one thread, and one small finished run."""

from __future__ import annotations

import functools
import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from markupsafe import Markup
from timm.models import _registry

from helpers.builders import SMALL_NETWORKS, save_images, save_vit_teacher
from helpers.command import trained, twinbud
from twinbud.report import page

for _number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
    if signal.getsignal(_number) is signal.SIG_IGN:  # inherited from nohup or a background shell
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """Spare the objects of all imported modules: each run collects garbage, which would go through them again."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep generated sets and converted teachers in a folder of this test session, which its workers share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    os.environ["TWINBUD_CACHE"] = str(folder)
    return folder


@pytest.fixture(autouse=True, scope="session")
def small_networks() -> Iterator[None]:
    """Make timm build the small networks of ``helpers.builders`` by their names."""
    with pytest.MonkeyPatch.context() as patch:
        for name, make in SMALL_NETWORKS.items():
            patch.setitem(_registry._model_entrypoints, name, make)
        yield


_FIGURE = page._figure


@pytest.fixture(autouse=True, scope="session")
def omitted_figures() -> Iterator[None]:
    """Leave out the figures of the pages of runs: drawing them takes half of the time of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "_figure", lambda _, name: Markup('<svg aria-label="{}"></svg>').format(name))
        yield


@pytest.fixture
def drawn_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the figures of pages, as outside of the tests."""
    monkeypatch.setattr(page, "_figure", _FIGURE)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute with one thread, since several workers share the cores; undo what a test has set."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders ``dark``, ``grey`` and ``light``; to be read only."""
    return save_images(tmp_path_factory.mktemp("images"), {"dark": 10, "grey": 10, "light": 10})


@pytest.fixture(scope="session")
def shared_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small ViT with LayerScale; to be read only."""
    return save_vit_teacher(tmp_path_factory.mktemp("teacher") / "vit")


@pytest.fixture(scope="session")
def shared_selection(tmp_path_factory: pytest.TempPathFactory, shared_teacher: str) -> Path:
    """What ``twinbud select`` writes for ``shared_teacher``; to be read only."""
    folder = tmp_path_factory.mktemp("selection") / "selected"
    answer = twinbud("select", "--teacher", shared_teacher, "--output", folder)
    assert answer.code == 0, answer.err
    return folder


@pytest.fixture(scope="session")
def shared_runs(
    tmp_path_factory: pytest.TempPathFactory, shared_images: Path, shared_teacher: str
) -> Callable[..., Path]:
    """Returns a finished run on ``shared_images`` with given words, always the same one; to be read only."""

    @functools.cache
    def run_with(*words: object) -> Path:
        return trained(shared_images, shared_teacher, tmp_path_factory.mktemp("runs") / "run", *words)

    return run_with


@pytest.fixture(scope="session")
def shared_run(shared_runs: Callable[..., Path]) -> Path:
    """A finished ``dual`` run on ``shared_images``; to be read only."""
    return shared_runs()
