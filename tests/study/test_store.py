"""The runs folder: records that are whole and of this folder, claims that die with their process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from twinbud.core.errors import TwinbudError
from twinbud.study.run_id import make_run_id
from twinbud.study.store import CorruptRecordError, RunStore

FACTS = {"images": "f", "settings": {"alpha": 0.6}}
RECORD: dict[str, Any] = {"facts": FACTS, "metrics": {"accuracy": 0.1 + 0.2}}
IDENTITY = make_run_id(FACTS)


@pytest.fixture
def folder(tmp_path: Path) -> RunStore:
    folder = RunStore(tmp_path / "runs")
    folder.create()
    return folder


def record_file(folder: RunStore) -> Path:
    return folder.path / "records" / f"{IDENTITY}.json"


def test_a_record_comes_back_as_it_was_and_ends_the_failure(folder: RunStore) -> None:
    folder.fail(IDENTITY, "no luck")
    assert folder.failure(IDENTITY) is not None
    folder.write(IDENTITY, RECORD)
    assert folder.read(IDENTITY) == RECORD
    assert folder.failure(IDENTITY) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("0.3", "0.9"),
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: json.dumps({"sha256": "x", "record": {}}),
        lambda text: "\0" * len(text),
    ],
)
def test_a_corrupt_record_is_named_and_can_be_set_aside(folder: RunStore, damage: Any) -> None:
    folder.write(IDENTITY, RECORD)
    folder.work(IDENTITY).mkdir()
    path = record_file(folder)
    path.write_text(damage(path.read_text()))
    with pytest.raises(CorruptRecordError, match=f"{path}: expected a record as it was written"):
        folder.read(IDENTITY)
    place = folder.set_aside(IDENTITY)
    assert place is not None
    assert place.parent == folder.path / "set-aside"
    assert not folder.is_done(IDENTITY)
    assert not folder.work(IDENTITY).exists(), "the run is made anew, not taken from what the record came from"
    assert folder.set_aside(IDENTITY) is None


def test_the_record_of_another_run_is_refused(folder: RunStore) -> None:
    folder.write(IDENTITY, {**RECORD, "facts": {**FACTS, "images": "others"}})
    with pytest.raises(TwinbudError, match="one made with other images or settings") as error:
        folder.read(IDENTITY)
    assert not isinstance(error.value, CorruptRecordError)


def test_one_of_two_claims_is_granted_and_a_killed_process_loses_its_own(folder: RunStore) -> None:
    code = (
        "import sys, time; from pathlib import Path; from twinbud.study.store import RunStore\n"
        f"with RunStore(Path({str(folder.path)!r})).claim('x') as mine:\n"
        "    print(mine, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with folder.claim("x") as mine, folder.claim("y") as another:
            assert (mine, another) == (False, True)
        other.kill()
        other.wait()
    with folder.claim("x") as mine:
        assert mine


def test_names_stand_for_the_same_images_ever_after(folder: RunStore) -> None:
    shades = {"fingerprint": "f", "num_images": 3, "classes": ["a", "b"]}
    folder.agree_on_images({"shades": shades})
    folder.agree_on_images({"others": {**shades, "fingerprint": "g"}})
    assert folder.images()["shades"] == shades
    with pytest.raises(TwinbudError, match="--data shades: expected the images that the records of 'shades'"):
        folder.agree_on_images({"shades": {**shades, "fingerprint": "g"}})
    assert folder.images()["shades"] == shades


def requested(method: str, sampling: int, run_id: str) -> dict[str, Any]:
    coordinates = {"method": method, "sampling": sampling}
    return {"identity": run_id, "profile": "paper", "coordinates": coordinates, "is_default": False}


def test_what_is_asked_for_adds_up_until_the_recipe_changes(folder: RunStore) -> None:
    folder.ask_for("small", "digest", [requested("dual", 0, "a"), requested("dual", 1, "b")])
    folder.ask_for("small", "digest", [requested("dual", 1, "c"), requested("timm", 0, "d")])
    plan = folder.read_plan("small")
    assert plan is not None
    assert [run["identity"] for run in plan["runs"]] == ["a", "c", "d"]
    folder.ask_for("small", "another", [requested("dual", 0, "e")])
    assert folder.read_plan("small") == {"digest": "another", "runs": [requested("dual", 0, "e")]}
    assert folder.read_plan("none") is None


@pytest.mark.parametrize("text", ["{", '{"runs": []}', '{"digest": "x", "runs": [{}]}'])
def test_a_damaged_plan_is_told_in_one_line(folder: RunStore, text: str) -> None:
    (folder.path / "plans" / "small.json").write_text(text)
    with pytest.raises(TwinbudError, match=r"small\.json: expected the plan of a study"):
        folder.read_plan("small")


def test_a_folder_that_holds_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for use in (RunStore(tmp_path).require, RunStore(tmp_path).create):
        with pytest.raises(TwinbudError, match="expected the runs folder of 'twinbud study', got a folder without"):
            use()
    with pytest.raises(TwinbudError, match="got a file"):
        RunStore(tmp_path / "thesis.tex").create()
    with pytest.raises(TwinbudError, match="got no such folder"):
        RunStore(tmp_path / "none").require()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_runs_of_another_format_are_refused(folder: RunStore) -> None:
    (folder.path / "study.json").write_text('{"format": 2, "data": {}}')
    with pytest.raises(TwinbudError, match="expected runs of format 1, got others"):
        folder.require()
