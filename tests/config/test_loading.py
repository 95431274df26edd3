"""Settings from a file and from the command line together, and as they are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from twinbud.config.loading import run_config, settings_of, with_absolute_paths, with_words
from twinbud.core.errors import TwinbudError


def saved(**settings: Any) -> dict[str, Any]:
    return settings_of(with_absolute_paths(run_config(settings, output=Path("run"))))


def test_saved_paths_hold_wherever_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert saved(teacher="local-dir:vit")["teacher"] == f"local-dir:{tmp_path}/vit"
    assert saved(teacher="local-dir:a@b")["teacher"] == f"local-dir:{tmp_path}/a@b"
    assert saved(teacher="convnext_tiny@w.safetensors")["teacher"] == f"convnext_tiny@{tmp_path}/w.safetensors"
    assert saved(teacher="convnext_tiny@/w.safetensors")["teacher"] == "convnext_tiny@/w.safetensors"
    assert saved(teacher="dinov2-small")["teacher"] == "dinov2-small"
    both = saved(teacher="local-dir:vit", selected="selected", data="images", split="split.csv")
    assert (both["teacher"], both["selected"]) == ("local-dir:vit", f"{tmp_path}/selected")
    assert (both["data"], both["split"]) == (f"{tmp_path}/images", f"{tmp_path}/split.csv")


def test_a_selection_on_the_command_line_replaces_all_that_the_file_says_of_it() -> None:
    file = {"teacher": "dinov2-small", "student": "half", "rule": "random", "attention": "heads", "swap_roles": True}
    assert with_words({**file, "epochs": 3}, {"selected": "DIR", "rule": "uniform"}) == {
        "epochs": 3, "selected": "DIR", "rule": "uniform"
    }  # fmt: skip


def test_a_teacher_on_the_command_line_replaces_the_selection_of_the_file() -> None:
    file = {"teacher": "dinov2-small", "selected": "DIR", "rule": "random"}
    assert with_words(file, {"teacher": "convnext_tiny"}) == {"teacher": "convnext_tiny", "rule": "random"}


def test_a_profile_beside_a_file_must_be_the_files() -> None:
    assert with_words({"epochs": 3}, {"profile": "quick"}) == {"epochs": 3, "profile": "quick"}
    assert with_words({"profile": "quick"}, {"profile": "quick", "epochs": 3}) == {"profile": "quick", "epochs": 3}
    with pytest.raises(TwinbudError, match=r"--profile: expected the profile of the --config file, quick, or none"):
        with_words({"profile": "quick"}, {"profile": "paper"})
