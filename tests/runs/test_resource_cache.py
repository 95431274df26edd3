"""What runs of one process share is opened once, and changes no number."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from twinbud.config.loading import run_config
from twinbud.core.errors import TwinbudError
from twinbud.runs import context, pipeline
from twinbud.runs.pipeline import train
from twinbud.runs.resource_cache import ResourceCache


def test_what_was_opened_is_kept_and_the_oldest_makes_room() -> None:
    resource_cache, opened = ResourceCache(), []

    def make(name: str) -> str:
        opened.append(name)
        return name.upper()

    for name in ("a", "a", "b", "a"):
        assert resource_cache.get_or_create("images", name, lambda name=name: make(name)) == name.upper()
    assert opened == ["a", "b", "a"]
    for name in ("a", "b", "a", "b"):
        resource_cache.get_or_create("initialization", name, lambda name=name: make(name))
    assert opened[3:] == ["a", "b"]


def test_what_cannot_be_opened_is_tried_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    resource_cache, tries = ResourceCache(), []

    def fail() -> None:
        tries.append(1)
        raise TwinbudError("no teacher is given")

    for _ in range(3):
        with pytest.raises(TwinbudError, match="no teacher is given"):
            resource_cache.get_or_create("initialization", "x", fail)
    assert len(tries) == 1
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    with pytest.raises(TwinbudError, match="no teacher is given"):
        resource_cache.get_or_create("initialization", "x", fail)
    assert len(tries) == 2


def test_runs_that_share_images_and_teachers_open_them_once_and_end_alike(
    shared_images: Path, shared_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    for module, name in ((context, "decode_images"), (pipeline, "open_initialization")):
        original = getattr(module, name)

        def counted(*given: Any, name: str = name, original: Any = original) -> Any:
            opened.append(name)
            return original(*given)

        monkeypatch.setattr(module, name, counted)

    def run(output: str, resource_cache: ResourceCache | None, **changes: Any) -> dict[str, Any]:
        settings = {
            "profile": "paper",
            "data": str(shared_images),
            "teacher": shared_teacher,
            "image_size": 28,
            "epochs": 2,
            "threads": 1,
        }
        train(
            run_config({**settings, "precision": "float32", **changes}, output=tmp_path / output),
            resource_cache=resource_cache,
        )
        metrics = json.loads((tmp_path / output / "metrics.json").read_text())
        return {name: value for name, value in metrics.items() if "second" not in name and "mib" not in name}

    alone = [run("first", None), run("second", None, seed=1)]
    assert sorted(opened) == ["decode_images"] * 2 + ["open_initialization"] * 2
    opened.clear()
    shared = ResourceCache()
    assert [run("third", shared), run("fourth", shared, seed=1)] == alone
    assert sorted(opened) == ["decode_images", "open_initialization"]
    run("fifth", shared, rule="random")
    run("sixth", shared, rule="random", seed=1)
    assert opened.count("open_initialization") == 3, "a random selection depends on the seed"
