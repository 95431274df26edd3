"""A cache that cannot be written costs time and never a run; its messages name TWINBUD_CACHE."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from twinbud.core import cache
from twinbud.core.cache import cache_folder, temporary_folder, use_temporary_home, warn_of_cache
from twinbud.data.phantom import phantom_folder
from twinbud.models import dinov2


@pytest.fixture(autouse=True)
def fresh_warnings() -> None:
    warn_of_cache.cache_clear()


def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """HOME is unset, and the user is unknown to the system."""
    for name in ("HOME", "TWINBUD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)


def test_without_a_home_directory_the_cache_is_a_private_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    no_home(monkeypatch)
    assert cache_folder() == cache_folder() == temporary_folder()
    assert temporary_folder().stat().st_mode & 0o077 == 0
    assert [record.getMessage() for record in caplog.records] == [
        "cache: the home directory is unknown, so that nothing is kept after this process; "
        "set TWINBUD_CACHE to a folder that can be written"
    ]


def test_without_a_home_directory_a_command_gets_a_temporary_one(monkeypatch: pytest.MonkeyPatch) -> None:
    no_home(monkeypatch)
    monkeypatch.setenv("HOME", "")  # restored after the test
    use_temporary_home()
    assert os.environ["HOME"] == str(temporary_folder())


def test_a_home_directory_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    use_temporary_home()
    assert os.environ["HOME"] == str(tmp_path)


@pytest.fixture(params=["a file", "below a file", "an unknown user"])
def unusable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    places = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "x", "an unknown user": "~nobody-here/x"}
    monkeypatch.setenv("TWINBUD_CACHE", str(places[request.param]))


@pytest.mark.usefixtures("unusable")
def test_the_phantom_set_goes_to_the_temporary_folder_if_the_cache_is_unusable(
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = phantom_folder(patients_per_class=1, slices_per_patient=1, size=32)
    assert folder.is_relative_to(temporary_folder())
    assert (folder / "labels.csv").is_file()
    assert len(caplog.records) == 1
    assert "TWINBUD_CACHE" in caplog.text
    assert "--output" not in caplog.text


def test_a_teacher_is_converted_each_time_if_the_cache_is_unusable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("TWINBUD_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(dinov2, "_verified_file", lambda: tmp_path)
    monkeypatch.setattr(dinov2, "convert", lambda path: {"x": cache})
    monkeypatch.setattr(dinov2, "save", lambda state: b"")
    assert dinov2.load_dinov2_small() == {"x": cache}
    assert "the converted teacher dinov2-small is not kept" in caplog.text


def test_a_damaged_entry_is_converted_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TWINBUD_CACHE", str(tmp_path))
    monkeypatch.setattr(dinov2, "_verified_file", lambda: tmp_path)
    monkeypatch.setattr(dinov2, "convert", lambda path: {"x": cache})
    monkeypatch.setattr(dinov2, "save", lambda state: b"half a file")
    dinov2.load_dinov2_small()
    assert dinov2.load_dinov2_small() == {"x": cache}
