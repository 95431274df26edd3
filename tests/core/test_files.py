"""Folders are written whole or not at all, whatever other processes do or left."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinbud.core.errors import TwinbudError
from twinbud.core.files import (
    new_folder,
    read_json,
    require_new_file,
    require_new_folder,
    require_unchanged,
    sealed,
    write_json,
)


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path: Path) -> None:
    """In containers, the next process often has the number of the killed one."""
    killed = new_folder(tmp_path / "model")
    (killed.__enter__() / "half").write_text("half")
    with new_folder(tmp_path / "model") as draft:
        (draft / "whole").write_text("whole")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["whole"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[NaN]", "NaN is not a finite number"),
        ('{"a": -Infinity}', "-Infinity is not a finite number"),
        ("1e999", "1e999 is not a finite number"),
        ("[1" + "0" * 400 + "]", "the number 10000000000000000000… has too many digits"),
    ],
)
def test_a_number_that_no_float_holds_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=problem):
        read_json(tmp_path / "a.json")


def test_a_sealed_object_is_refused_once_it_was_changed(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", sealed({"b": [1, 0.1 + 0.2], "a": None}))
    content = read_json(tmp_path / "a.json")
    require_unchanged(content)
    require_unchanged({"b": [2], "a": None})  # of an earlier version
    for changed in (content | {"b": [1, 0.3]}, content | {"c": 1}, content | {"sha256": None}):
        with pytest.raises(ValueError, match="the content was changed after it was written"):
            require_unchanged(changed)


def test_a_folder_that_another_process_wrote_meanwhile_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    late, early = new_folder(folder), new_folder(folder)
    for writer, text in ((late, "late"), (early, "early")):
        (writer.__enter__() / "a").write_text(text)
    early.__exit__(None, None, None)
    with pytest.raises(TwinbudError, match="the folder is not empty"):
        late.__exit__(None, None, None)
    assert (folder / "a").read_text() == "early"
    assert [path.name for path in tmp_path.iterdir()] == ["maps"]
    with new_folder(folder, force=True) as forced:
        (forced / "a").write_text("forced")
    assert (folder / "a").read_text() == "forced"


def test_the_current_folder_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (Path(), tmp_path):
        with pytest.raises(TwinbudError, match=r"is the current folder, which cannot be replaced as a whole\. Give "):
            require_new_folder(folder)
    for folder in (Path(), Path("/")):
        with pytest.raises(TwinbudError, match="a folder stands where a file is needed"):
            require_new_file(folder)
    assert not list(tmp_path.iterdir())
