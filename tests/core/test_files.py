"""Folders are written whole or not at all, whatever other processes do or left."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinbud.core.errors import TwinbudError
from twinbud.core.files import new_folder, require_new_file, require_new_folder


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path: Path) -> None:
    """In containers, the next process often has the number of the killed one."""
    killed = new_folder(tmp_path / "model")
    (killed.__enter__() / "half").write_text("half")
    with new_folder(tmp_path / "model") as draft:
        (draft / "whole").write_text("whole")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["whole"]


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
