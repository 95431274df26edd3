"""Runs keep near-duplicates on one side, whatever their image size, and refuse a given split that does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from helpers.command import refusal, train
from twinbud.config.loading import run_config
from twinbud.core.progress import SilentProgress
from twinbud.data.split import Split
from twinbud.runs.context import open_images, open_near_pairs, split_images
from twinbud.runs.resource_cache import ResourceCache


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 10 pictures, and a brighter copy of each; the CSV puts the copies into the test part."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = ["image_path,label,split"]
    for number in range(20):
        values = gaussian_filter(np.random.default_rng(number).normal(size=(96, 96)), 2)
        values = 110 + 30 * values / values.std()
        for name, pixels, part in (("a", values, "train"), ("b", 0.8 * values + 40, "test")):
            label = "xy"[number % 2]
            path = folder / "images" / label / f"{number:02}{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
            lines.append(f"images/{label}/{path.name},{label},{part}")
    (folder / "split.csv").write_text("\n".join(lines) + "\n")
    return folder


def split_of(folder: Path, **settings: Any) -> Split:
    chosen = {"data": str(folder / "images"), "teacher": "dinov2-small", **settings}
    config, resource_cache, progress = run_config(chosen, output=Path("-")), ResourceCache(), SilentProgress()
    image_index, image_store = open_images(config, progress, resource_cache)
    near_pairs = open_near_pairs(config, image_index, image_store.digests, progress, resource_cache)
    return split_images(config, image_index, image_store, near_pairs=near_pairs)


@pytest.mark.parametrize("profile", ["best", "quick"])
def test_copies_are_on_one_side_whatever_the_image_size(pictures: Path, profile: str) -> None:
    small, large = (split_of(pictures, profile=profile, image_size=size) for size in (28, 84))
    assert small == large
    assert len(small.near_pairs) == 20
    assert all((first in small.test) == (second in small.test) for first, second in small.near_pairs)
    assert "20 groups of near-duplicates found (40 images): each group is in one part only" in small.notes


@pytest.mark.parametrize("settings", [{"profile": "paper"}, {"near_duplicates": "ignore"}, {"split_duplicates": True}])
def test_whoever_ignores_them_gets_the_plain_split(pictures: Path, settings: dict[str, Any]) -> None:
    split = split_of(pictures, image_size=28, **settings)
    assert split.near_pairs == ()
    copies = [(row, row + 1) for row in range(0, 40, 2)]
    assert any((first in split.test) != (second in split.test) for first, second in copies)


def test_a_given_split_with_copies_on_both_sides_is_refused_before_a_folder_is_made(
    pictures: Path, shared_teacher: str, tmp_path: Path
) -> None:
    words = ("--near-duplicates", "group")
    line = refusal(train(pictures / "split.csv", shared_teacher, tmp_path / "run", *words))
    assert "20 pairs show the same picture in two parts of the split" in line
    assert "'images/x/00a.png' (train) = 'images/x/00b.png' (test)" in line
    assert not (tmp_path / "run").exists()
