"""A run folder holds what a run leaves, and nothing else of it is ever touched."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from twinbud.core.errors import TwinbudError
from twinbud.core.files import new_folder
from twinbud.runs.run_dir import read_settings, require_run_output, started_run


def finished_run(folder: Path) -> Path:
    with started_run(folder, force=False) as run:
        for name in ("config.yaml", "metrics.json", "events.out.tfevents.1", "model/config.json"):
            (run / name).parent.mkdir(exist_ok=True)
            (run / name).write_text("{}")
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["thesis.tex", "model/notes.txt", "evaluation/metrics.json", "checkpoints/mine.pt"])
@pytest.mark.parametrize("unfinished", [True, False])
def test_a_run_is_not_replaced_where_others_files_lie_in_it(name: str, unfinished: bool, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    if unfinished:
        (run / "UNFINISHED").touch()
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text("years of work")
    before = contents(run)
    foreign = name if name.startswith(("thesis", "model", "checkpoints")) else "evaluation"
    for resume in (True, False) if unfinished else (False,):
        with pytest.raises(TwinbudError) as caught, started_run(run, force=not resume, resume=resume):
            pass
        assert f"got a folder that holds something else ({foreign})." in str(caught.value)
        assert "move what is not the run's" in str(caught.value)
    assert contents(run) == before


def test_a_run_is_replaced_whole_where_nothing_else_lies_in_it(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    (run / ".split.csv.123.draft").touch()
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    (run / "checkpoints" / ".step-00000002.draft").mkdir()
    with started_run(run, force=True):
        assert [path.name for path in run.iterdir()] == ["UNFINISHED"]


def test_an_unfinished_run_that_can_go_on_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(RuntimeError), started_run(run, force=False):
        raise RuntimeError
    for refused in (read_settings, lambda folder: require_run_output(folder, force=False)):
        with pytest.raises(TwinbudError, match="If it has stopped, begin it again with --resume, or anew"):
            refused(run)
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    for refused in (read_settings, lambda folder: require_run_output(folder, force=False)):
        with pytest.raises(TwinbudError, match=r"If it has stopped, go on with it with --resume, or anew"):
            refused(run)


@pytest.mark.parametrize("fill", [started_run, new_folder])
def test_what_fails_while_a_folder_is_filled_is_not_called_a_place_that_cannot_be_written(
    fill: Callable[..., AbstractContextManager[Path]], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="an image that vanished"), fill(tmp_path / "folder", force=False):
        raise FileNotFoundError(2, "an image that vanished")
