"""The demo compares three methods on one split, and nothing else differs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from twinbud.config.schema import RunConfig
from twinbud.core.csv_files import read_cells
from twinbud.data import phantom
from twinbud.models.wheel import WheelNetwork
from twinbud.runs import demo as module
from twinbud.training.amp import PrecisionChoice


def requested_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The configurations of the methods, none of them trained."""
    configs: list[RunConfig] = []
    choices = iter([PrecisionChoice(True, "fast now"), PrecisionChoice(False, "slow now")])

    class EnoughError(Exception):
        """All methods have been requested."""

    def train(config: RunConfig, progress: object) -> None:
        del progress
        configs.append(config)
        if len(configs) == len(module.ARMS):
            raise EnoughError

    small = partial(phantom.phantom_folder, patients_per_class=4, size=32)
    monkeypatch.setattr(phantom, "phantom_folder", small)
    monkeypatch.setattr(WheelNetwork, "load", lambda wheel: {})
    monkeypatch.setattr(module, "choose_precision", lambda *arguments: next(choices))
    monkeypatch.setattr(module, "train", train)
    with pytest.raises(EnoughError):
        module.demo(tmp_path / "demo")
    return configs


def test_the_methods_share_images_epochs_split_and_the_precision_chosen_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = requested_configs(tmp_path, monkeypatch)
    assert [config.model.method for config in configs] == ["timm", "dual", "selection"]
    assert {config.training.precision for config in configs} == {"bf16"}
    assert len({config.data for config in configs}) == 1
    assert len({(c.training.batch_size, c.training.image_size) for c in configs}) == 1
    assert {c.training.epochs or c.tuning.tune_epochs for c in configs} == {module.SETTINGS["epochs"]}


def test_the_split_of_the_demo_halves_the_patients_of_each_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested_configs(tmp_path, monkeypatch)
    parts: dict[str, set[tuple[str, str]]] = {"train": set(), "test": set()}
    for _, row in read_cells(tmp_path / "demo" / "split.csv", ("image_path", "label", "patient_id", "split")):
        parts[row["split"]].add((row["label"], row["patient_id"]))
    assert not parts["train"] & parts["test"]
    labels = {label for label, _ in parts["train"]}
    for part in parts.values():
        assert [sum(label == own for own, _ in part) for label in sorted(labels)] == [2, 2, 2, 2]
