"""What the measurements are taken on: images, a split, and the student pairs of two teachers with random weights."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from twinbud.data.phantom import phantom_folder

TEACHERS = {"vit": "vit_small_patch14_dinov2", "convnext": "convnext_tiny"}
"""Half of the first is the ViT of the paper's small pair, half of the second its ConvNeXt-F; speed sees no weights."""
TITLES = {"vit": "ViT, half of dinov2-small", "convnext": "ConvNeXt-F, half of convnext_tiny"}
PHANTOM_FRACTION = 0.25
REAL_FRACTION = 0.05


@dataclass(frozen=True, kw_only=True)
class Material:
    """Images and student pairs.

    Attributes:
        data: What twinbud is given as ``--data``.
        fraction: What twinbud is given as ``--fraction``.
        listing: The labelled and the test images of twinbud's own split of them.
        selected: The student pairs, by the keys of ``TEACHERS``.
    """

    data: str
    fraction: float
    listing: Path
    selected: dict[str, Path]


def prepare(folder: Path, *, data: str | None, fraction: float | None, models: tuple[str, ...]) -> Material:
    """Make what is missing in ``folder``; the first run of twinbud makes the split and fills the caches."""
    selected = {model: select_random(folder, model) for model in models}
    fraction = fraction or (REAL_FRACTION if data else PHANTOM_FRACTION)
    data = data or str(phantom_folder() / "labels.csv")
    run = folder / "first-run"
    twinbud(
        *("train", "--data", data, "--fraction", fraction, "--selected", selected[models[0]], "--profile", "quick"),
        *("--method", "selection", "--epochs", 1, "--min-steps", 0, "--image-size", 112, "--output", run),
        *("--near-duplicates", "ignore"),
    )
    listing = folder / "images.csv"
    write_listing(listing, split=run / "split.csv", root=Path(data) if Path(data).is_dir() else Path(data).parent)
    return Material(data=data, fraction=fraction, listing=listing, selected=selected)


def select_random(folder: Path, model: str) -> Path:
    """``twinbud select`` on a teacher of timm's random weights, LayerScale at 1 so that every block works."""
    architecture = TEACHERS[model]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = timm.create_model(architecture, pretrained=False, num_classes=0)
    state = {name: tensor.contiguous() for name, tensor in teacher.state_dict().items()}
    for name, tensor in state.items():
        if name.endswith("gamma"):
            tensor.fill_(1.0)
    weights = folder / f"{architecture}.safetensors"
    save_file(state, weights)
    twinbud("select", "--teacher", f"{architecture}@{weights}", "--output", folder / model)
    return folder / model


def write_listing(listing: Path, *, split: Path, root: Path) -> None:
    """The labelled and the test images of a run, with absolute paths, for programs that know nothing of twinbud."""
    with split.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test" or row["labelled"] == "1"]
    with listing.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image_path", "label", "split"))
        writer.writerows(((root / row["image_path"]).absolute(), row["label"], row["split"]) for row in rows)


def twinbud(*words: Any) -> None:
    """Run a command of twinbud; its errors pass through."""
    command = [sys.executable, "-m", "twinbud", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
