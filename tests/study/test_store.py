"""The runs folder: records with checksums, claims that end with their process, and the format version."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twinbud.core.errors import TwinbudError
from twinbud.core.files import require_free
from twinbud.study.requests import RequestedRun
from twinbud.study.run_id import make_run_id
from twinbud.study.store import FORMAT_VERSION, CorruptRecordError, RunStore, StudyPlan

FACTS = {"images": "f", "settings": {"alpha": 0.6}}
RECORD: dict[str, Any] = {"facts": FACTS, "metrics": {"accuracy": 0.1 + 0.2}}
RUN_ID = make_run_id(FACTS)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(tmp_path / "runs")
    store.create()
    return store


def record_path(store: RunStore) -> Path:
    return store.path / "records" / f"{RUN_ID}.json"


def test_reading_returns_what_was_written_and_writing_removes_the_failure(store: RunStore) -> None:
    store.record_failure(RUN_ID, "out of memory")
    failure = store.read_failure(RUN_ID)
    assert failure is not None
    assert failure.reason == "out of memory"
    assert (store.done_ids(), store.failed_ids()) == (set(), {RUN_ID})
    store.write(RUN_ID, RECORD)
    assert store.read(RUN_ID) == RECORD
    assert store.read_failure(RUN_ID) is None
    assert (store.done_ids(), store.failed_ids()) == ({RUN_ID}, set())


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda text: text.replace("0.3", "0.9"), "was changed after it was written"),
        (lambda text: text[: len(text) // 2], "cannot be read"),
        (lambda text: "", "cannot be read"),
        (lambda text: "[]", "cannot be read"),
        (lambda text: json.dumps({"sha256": "x", "record": {}}), "was changed after it was written"),
        (lambda text: "\0" * len(text), "cannot be read"),
    ],
    ids=["changed", "truncated", "empty", "list", "other checksum", "zeros"],
)
def test_a_corrupt_record_is_refused_and_can_be_set_aside(store: RunStore, damage: Any, problem: str) -> None:
    store.write(RUN_ID, RECORD)
    store.run_dir(RUN_ID).mkdir()
    path = record_path(store)
    path.write_text(damage(path.read_text()))
    with pytest.raises(CorruptRecordError, match=f"{path}: the record {problem}"):
        store.read(RUN_ID)
    target = store.set_aside(RUN_ID)
    assert target is not None
    assert target.parent == store.path / "set-aside"
    assert not store.is_done(RUN_ID)
    assert not store.run_dir(RUN_ID).exists(), "the run must be executed again, not read from its folder"
    assert store.set_aside(RUN_ID) is None


def test_the_record_of_another_run_is_refused(store: RunStore) -> None:
    store.write(RUN_ID, {**RECORD, "facts": {**FACTS, "images": "others"}})
    with pytest.raises(TwinbudError, match="the record belongs to another run") as error:
        store.read(RUN_ID)
    assert not isinstance(error.value, CorruptRecordError)


def test_one_process_holds_a_claim_and_a_killed_process_loses_it(store: RunStore) -> None:
    code = (
        "import sys, time; from pathlib import Path; from twinbud.study.store import RunStore\n"
        f"with RunStore(Path({str(store.path)!r})).claim('x') as is_claimed:\n"
        "    print(is_claimed, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with store.claim("x") as x_is_claimed, store.claim("y") as y_is_claimed:
            assert (x_is_claimed, y_is_claimed) == (False, True)
        other.kill()
        other.wait()
    with store.claim("x") as is_claimed:
        assert is_claimed


def test_the_name_of_an_image_set_keeps_its_images(store: RunStore) -> None:
    shades = {"fingerprint": "f", "num_images": 3, "classes": ["a", "b"]}
    store.register_images({"shades": shades})
    store.register_images({"others": {**shades, "fingerprint": "g"}})
    assert store.image_sets()["shades"] == shades
    with pytest.raises(TwinbudError, match="--data shades: the images, labels or their order differ from those of"):
        store.register_images({"shades": {**shades, "fingerprint": "g"}})
    assert store.image_sets()["shades"] == shades


def request(method: str, sampling: int, run_id: str) -> RequestedRun:
    coordinates = {"data": "x", "pair": "vit", "fraction": 0.05, "sampling": sampling, "method": method}
    return RequestedRun(run_id=run_id, profile="paper", coordinates=coordinates)


def test_requests_accumulate_until_the_recipe_changes(store: RunStore) -> None:
    store.add_requests("small", "digest", [request("dual", 0, "a"), request("dual", 1, "b")])
    store.add_requests("small", "digest", [request("dual", 1, "c"), request("timm", 0, "d")])
    plan = store.read_plan("small")
    assert plan is not None
    assert [run.run_id for run in plan.runs] == ["a", "c", "d"]
    store.add_requests("small", "another", [request("dual", 0, "e")])
    assert store.read_plan("small") == StudyPlan("another", (request("dual", 0, "e"),))
    assert store.read_plan("none") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"run_id": 3},
        {"run_id": "../../x"},
        {"profile": None},
        {"is_default": "no"},
        {"coordinates": []},
        {"coordinates": {"method": "dual", "sampling": 0}},
        *({"coordinates": {name: value}} for name in ("data", "pair", "method") for value in (3, None, ["a"])),
        *({"coordinates": {name: value}} for name in ("fraction", "sampling") for value in ("x", None, True)),
        {"coordinates": {"sweep": "alpha"}},
        {"coordinates": {"alpha": [0.5]}},
        {"coordinates": {"alpha": 0.5}},
    ],
    ids=str,
)
def test_a_plan_that_no_study_wrote_is_refused(store: RunStore, changes: dict[str, Any]) -> None:
    store.add_requests("small", "digest", [request("dual", 0, "a"), request("dual", 1, "b")])
    path = store.path / "plans" / "small.json"
    plan = json.loads(path.read_text())
    first, whole = plan["runs"][0], ([], {"method": "dual", "sampling": 0})
    if changes.get("coordinates", []) not in whole:
        changes = {"coordinates": first["coordinates"] | changes["coordinates"]}
    first.update(changes)
    path.write_text(json.dumps(plan))
    with pytest.raises(TwinbudError, match=r"small\.json: the plan of the study cannot be read"):
        store.read_plan("small")


@pytest.mark.parametrize("text", ["{", '{"runs": []}', '{"digest": "x", "runs": [{}]}', '{"digest": "x", "runs": [3]}'])
def test_a_damaged_plan_is_refused(store: RunStore, text: str) -> None:
    (store.path / "plans" / "small.json").write_text(text)
    with pytest.raises(TwinbudError, match=r"small\.json: the plan of the study cannot be read"):
        store.read_plan("small")


def test_a_folder_with_other_contents_is_refused_and_not_changed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for use in (RunStore(tmp_path).require, RunStore(tmp_path).create):
        with pytest.raises(TwinbudError, match=r"the folder is not a runs folder: it has no readable study\.json"):
            use()
    with pytest.raises(TwinbudError, match="the path is a file"):
        RunStore(tmp_path / "thesis.tex").create()
    with pytest.raises(TwinbudError, match="the runs folder does not exist"):
        RunStore(tmp_path / "none").require()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"format": 1, "data": {}}', f"format version 1, but this twinbud reads version {FORMAT_VERSION}"),
        (
            '{"format_version": 3, "image_sets": []}',
            f"format version 3, but this twinbud reads version {FORMAT_VERSION}",
        ),
        ('{"format_version": 2}', r"no readable study\.json"),
        ("[]", r"no readable study\.json"),
        ("3", r"no readable study\.json"),
    ],
)
def test_another_format_version_is_refused_in_one_line(store: RunStore, text: str, problem: str) -> None:
    (store.path / "study.json").write_text(text)
    for use in (store.require, store.create):
        with pytest.raises(TwinbudError, match=problem):
            use()


@pytest.mark.parametrize("check", [lambda path: RunStore(path).create(), require_free])
@pytest.mark.parametrize("question", ["exists", "is_dir"])
def test_a_folder_that_another_process_creates_meanwhile_is_not_called_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: str, check: Callable[[Path], None]
) -> None:
    folder = tmp_path / "runs"
    ask = getattr(Path, question)

    def ask_and_create(path: Path) -> bool:
        answer = ask(path)
        if path == folder and not answer:
            folder.mkdir()
        return bool(answer)

    monkeypatch.setattr(Path, question, ask_and_create)
    check(folder)
    assert folder.is_dir()
