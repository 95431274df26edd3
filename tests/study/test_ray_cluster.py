"""Studies on a real Ray cluster of two nodes on this machine: nodes and drivers are lost, and no run is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from helpers.command import twinbud
from helpers.processes import Command
from helpers.ray_nodes import (
    add_node,
    can_hide_folders,
    lose_node,
    node_without,
    ray_cluster,
    task_processes,
    wait_until_ended,
)
from helpers.studies import (
    SETTINGS,
    recipe_content,
    save_images_and_teacher,
    save_recipe,
    start_study,
    timeless_tables,
)
from twinbud.study.store import RunStore

pytest.importorskip("ray", reason="Ray is not installed: pip install 'twinbud[cluster]'")
pytestmark = [
    pytest.mark.cluster,
    # the resources of Ray's own processes
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Small(NamedTuple):
    """A study of four runs, and its tables when this machine executes it."""

    folder: Path
    recipe: Path
    images: Path
    tables: dict[str, bytes]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("small")
    images, teacher = save_images_and_teacher(folder)
    content = recipe_content(teacher, settings={**SETTINGS, "epochs": 24})
    recipe, runs = save_recipe(folder / "small.yaml", content), folder / "runs"
    answer = twinbud("study", recipe, "--data", f"shades={images}", "--runs", runs, "--workers", 0)
    assert answer.code == 0, answer.err
    return Small(folder, recipe, images, timeless_tables(recipe, runs, folder / "expected"))


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    with ray_cluster() as cluster:
        yield cluster


def wait_until(condition: Callable[[], object], command: Command, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert command.is_running, command.log.with_suffix(".err").read_text()
        assert time.monotonic() < deadline, command.log.with_suffix(".err").read_text()
        time.sleep(0.02)


def accuracies(text: str) -> list[str]:
    """The runs that a log reports as finished."""
    lines = [line for line in text.splitlines() if ": accuracy " in line]
    return [line.rpartition(": accuracy ")[0].rpartition("done")[2].rpartition(" · shades")[2] for line in lines]


def test_a_study_survives_the_loss_of_a_node_and_then_of_its_driver(small: Small, head: Any, tmp_path: Path) -> None:
    runs, node = tmp_path / "runs", add_node(head)
    store = RunStore(runs)
    store.create()
    options = ("--executor", "ray", "--address", head.address)
    with store.claim(sorted(RunStore(small.folder / "runs").done_ids())[0]) as is_claimed:
        assert is_claimed, "as if another driver on the folder executed the run"
        driver = start_study(small.recipe, small.images, runs, *options)
        log = driver.log.with_suffix(".err")
        wait_until(lambda: len(list(runs.glob("work/*/history.csv"))) >= 2, driver)
        lose_node(head, node)
        wait_until(lambda: "its node was lost; another worker resumes the run" in log.read_text(), driver)
        wait_until(lambda: len(store.done_ids()) >= 1, driver)
        tasks = task_processes(os.getpid(), "shades")
        driver.process.kill()
        driver.wait()
    assert len(store.done_ids()) < 4, "the claimed run kept the study from its end"
    assert wait_until_ended(tasks) == []
    first = accuracies(log.read_text())
    words = ("study", small.recipe, "--data", f"shades={small.images}", "--runs", runs)
    answer = twinbud(*words, *options)
    assert answer.code == 0, answer.err
    assert answer.out.startswith("4 of 4 runs done\n"), "nothing but the result is printed"
    finished = [*first, *accuracies(answer.err)]
    assert len(finished) == len(set(finished)), "no run is executed twice"
    assert timeless_tables(small.recipe, runs, tmp_path) == small.tables


@pytest.mark.skipif(not can_hide_folders(), reason="this machine lets no process have mounts of its own")
def test_a_node_that_shares_no_files_gets_copies_and_returns_results(small: Small, tmp_path: Path) -> None:
    runs, cache = small.folder / "returned", tmp_path / "node-cache"
    options = ("--executor", "ray", "--keep-models")
    with ray_cluster(num_cpus=0) as cluster, node_without(small.folder, cluster, cache) as node:
        driver = start_study(small.recipe, small.images, runs, *options, "--address", cluster.address)
        wait_until(lambda: list(cache.glob("cluster/studies/*/work/*/history.csv")), driver)
        tasks = task_processes(node.pid, "shades")
        assert tasks
        os.kill(driver.pid, signal.SIGTERM)
        stopped = driver.wait()
        assert stopped.code == 75, stopped.err
        assert "the same command resumes the study" in stopped.err
        assert wait_until_ended(tasks) == []
        # in a process of its own: this one is connected to the cluster of the other test of this file
        answer = start_study(small.recipe, small.images, runs, *options, "--address", cluster.address).wait()
        assert answer.code == 0, answer.err
    assert timeless_tables(small.recipe, runs, tmp_path / "found") == small.tables
    models = sorted(path.parts[-3] for path in runs.glob("work/*/model/model.safetensors"))
    assert models == sorted(RunStore(runs).done_ids())
    assert len(list(cache.glob("cluster/inputs/*/dark"))) == 1, "images are unpacked once a node"
    assert not list(cache.glob("cluster/studies/*/work/*")), "results are moved, not copied"
