"""Where a run starts from: what a plan says is what the run says, and a fingerprint knows two starts apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.builders import save_vit_teacher
from twinbud.config.loading import run_config
from twinbud.config.schema import ModelConfig
from twinbud.core.errors import TwinbudError
from twinbud.models.initialization import Initialization, open_initialization
from twinbud.models.selection_io import select_to_folder


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return save_vit_teacher(tmp_path / "teacher")


def selected(teacher: str, folder: Path, *, seed: int = 0, **settings: Any) -> Path:
    select_to_folder(ModelConfig(teacher=teacher, **settings), folder, seed=seed)
    return folder


def opened(**settings: Any) -> Initialization:
    return open_initialization(run_config({"profile": "paper", "image_size": 28, **settings}, output=Path("run")))


def test_what_the_plan_says_is_what_the_run_says(teacher: str, tmp_path: Path) -> None:
    folder = selected(teacher, tmp_path / "selected", rule="random", attention="heads", swap_roles=True)
    for method in ("dual", "selection", "timm"):
        model = opened(selected=folder, method=method).model
        assert (model.rule, model.attention, model.swap_roles) == ("random", "heads", True)
        assert (model.teacher, model.student, model.selected) == (teacher, "half", folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [("rule", "consecutive"), ("rule", "uniform"), ("attention", "interleaved"), ("student", "vit_tiny_patch16_224"),
     ("swap_roles", False), ("teacher", "dinov2-small")],
)  # fmt: skip
@pytest.mark.parametrize("method", ["dual", "timm"])
def test_a_setting_that_contradicts_the_plan_is_refused(
    name: str, value: Any, method: str, teacher: str, tmp_path: Path
) -> None:
    """Also one that says the usual, where it was said."""
    folder = selected(teacher, tmp_path / "selected", rule="random", attention="heads", swap_roles=True)
    with pytest.raises(TwinbudError) as caught:
        opened(selected=folder, method=method, **{name: value})
    line = str(caught.value)
    assert line.startswith(f"--{name.replace('_', '-')}: '{value}' contradicts {folder}, which was selected with '")
    assert "Leave the option out" in line


def test_settings_that_agree_with_the_plan_are_taken(teacher: str, tmp_path: Path) -> None:
    folder = selected(teacher, tmp_path / "selected", rule="random")
    assert opened(selected=folder, teacher=teacher, rule="random", student="half").model.rule == "random"


def test_the_fingerprint_is_of_what_is_inherited_and_not_of_where_it_lay(teacher: str, tmp_path: Path) -> None:
    direct = opened(teacher=teacher).fingerprint()
    assert opened(selected=selected(teacher, tmp_path / "carried")).fingerprint() == direct
    different = [
        opened(teacher=save_vit_teacher(tmp_path / "other", seed=1)),
        opened(teacher=teacher, swap_roles=True),
        opened(teacher=teacher, rule="consecutive"),
        opened(teacher=teacher, method="selection"),
        opened(teacher=teacher, method="timm"),
    ]
    assert len({direct, *(initialization.fingerprint() for initialization in different)}) == 6


def test_an_impossible_image_size_is_found_before_the_weights_are_opened(teacher: str, tmp_path: Path) -> None:
    (tmp_path / "teacher" / "model.safetensors").unlink()
    with pytest.raises(TwinbudError, match="30 is not a multiple of the patch size, 7 pixels"):
        opened(teacher=teacher, image_size=30)
