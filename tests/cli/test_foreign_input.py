"""Files from a stranger: each is refused in one line; nothing of it runs, is fetched, or is written elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from helpers.builders import save_images
from helpers.command import refusal, train, trained, twinbud
from twinbud.core.errors import TwinbudError
from twinbud.core.files import read_yaml
from twinbud.models.model_folder import open_model_folder
from twinbud.models.selection_io import load_selection, select
from twinbud.models.teacher import open_teacher, read_teacher_info
from twinbud.models.weights_file import read_safetensors
from twinbud.training.checkpoint import START, Checkpoint, CheckpointFolder

DEEP = "[" * 200_000 + "]" * 200_000
LONG_NUMBER = "9" * 100_000


@pytest.fixture(autouse=True)
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that malicious samples try to make; and no connection is tried, to any host."""
    path = tmp_path / "canary"
    tried: list[object] = []

    def refuse(*arguments: object) -> None:
        tried.append(arguments)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("CANARY", str(path))
    yield path
    assert not path.exists(), "code of a stranger ran"
    assert not tried, "a connection was tried"


class Bomb:
    """What a pickle runs when it is opened."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ('touch "$CANARY"',)


def header(content: object, length: int | None = None) -> bytes:
    """The head of a safetensors file, with the length it claims."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def tensor(shape: list[int], end: int, dtype: str = "F32") -> dict[str, object]:
    return {"norm.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


WEIGHTS: dict[str, bytes] = {
    "a pickle": pickle.dumps(Bomb()),
    "a pickle of a later protocol": pickle.dumps(Bomb(), protocol=5),
    "a ZIP like torch's": b"PK\x03\x04" + pickle.dumps(Bomb()),
    "a header of 2^63 bytes": header({}, 2**63),
    "a header of 2^64 - 1 bytes": header({}, 2**64 - 1),
    "a header longer than the file": header({}, 10**6),
    "10^15 elements": header(tensor([10**15], 4 * 10**15)) + bytes(64),
    "10^15 elements in 64 bytes": header(tensor([10**15], 64)) + bytes(64),
    "sizes whose product overflows": header(tensor([2**32, 2**32, 2], 64)) + bytes(64),
    "offsets that run backwards": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}) + bytes(8),
    "negative sizes": header(tensor([-1], 64)) + bytes(64),
    "an unknown type": header(tensor([16], 64, "PICKLE")) + bytes(64),
    "a header nested deeply": header(DEEP.encode()),
    "a header that is no JSON": header(b"\xff" * 100),
    "an empty file": b"",
    "a few bytes": b"\x08\0\0",
}


@pytest.mark.parametrize("contents", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_of_another_kind_are_refused_everywhere(
    contents: bytes, shared_run: Path, shared_teacher: str, selection: Path, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(contents)
    with pytest.raises(TwinbudError, match=r"^\S+: the file is not in safetensors format"):
        read_safetensors(file)
    model = Path(shutil.copytree(shared_run / "model", tmp_path / "model"))
    shutil.copy(file, model)
    assert "not in safetensors format" in refusal(twinbud("predict", model, shared_run))
    teacher = Path(shutil.copytree(shared_teacher.removeprefix("local-dir:"), tmp_path / "teacher"))
    shutil.copy(file, teacher)
    with pytest.raises(TwinbudError, match="not in safetensors format"):
        open_teacher(read_teacher_info(f"local-dir:{teacher}"))
    shutil.copy(file, selection / "student.safetensors")
    change_plan(selection, sha256__=("student.safetensors", hashlib.sha256(contents).hexdigest()))
    with pytest.raises(TwinbudError, match="not in safetensors format"):
        load_selection(selection)


def change(path: Path, **changes: Any) -> None:
    """Replace keys of a JSON file; ``outer__=(inner, value)`` replaces one inside another."""
    content = json.loads(path.read_text())
    for name, value in changes.items():
        if name.endswith("__"):
            content[name.removesuffix("__")][value[0]] = value[1]
        else:
            content[name] = value
    path.write_text(json.dumps(content))


def change_plan(folder: Path, **changes: Any) -> None:
    change(folder / "plan.json", **changes)


@pytest.fixture
def model(shared_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared_run / "model", tmp_path / "shared"))


@pytest.fixture
def selection(shared_selection: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared_selection, tmp_path / "selected"))


@pytest.fixture
def teacher(shared_teacher: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared_teacher.removeprefix("local-dir:"), tmp_path / "vit"))


ARCHITECTURES = [
    "hf-hub:evil/x", "hf_hub:evil/x", "HF-HUB:evil/x", "local-dir:{elsewhere}", "local-dir:/proc/self/root", "evil/x",
    "../../vit_tiny_patch16_224", "hf-hub:evil/x.vit_tiny_patch16_224", "", 1, None, ["vit_tiny_patch16_224"], {},
]  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_that_names_another_place_is_refused(
    name: Any, model: Path, selection: Path, teacher: Path, tmp_path: Path
) -> None:
    name = name.format(elsewhere=tmp_path / "vit") if isinstance(name, str) else name
    change(model / "config.json", architecture=name)
    with pytest.raises(TwinbudError, match="timm has no architecture"):
        open_model_folder(model)
    change_plan(selection, student__=("architecture", name))
    with pytest.raises(TwinbudError, match="timm has no architecture"):
        load_selection(selection)
    change(teacher / "config.json", architecture=name)
    with pytest.raises(TwinbudError, match="timm has no architecture"):
        read_teacher_info(f"local-dir:{teacher}")


ARGUMENTS: dict[str, Any] = {
    "pretrained": True,
    "pretrained_cfg": {"file": "{pickle}", "url": "http://evil/x", "hf_hub_id": "evil/x", "custom_load": True},
    "pretrained_cfg_overlay": {"file": "{pickle}"},
    "checkpoint_path": "{pickle}",
    "cache_dir": "{elsewhere}",
    "model_name": "hf-hub:evil/x",
    "variant": "x",
    "name": "x",
    "architecture": "hf-hub:evil/x",
    "weights": "x",
    "features_only": True,
    "pruned": True,
    "scriptable": True,
    "device": "cuda",
    "embed_dim": 10**12,
    "depth": 10**9,
    "depths": [10**9] * 4,
    "img_size": -(10**30),
    "num_heads": 1e308,
    "mlp_ratio": float("inf"),
    "norm_layer": {"__reduce__": "os.system"},
    "block_fn": "os.system",
    "patch_size": [[[[7]]]],
    "act_layer": "__import__('os').system('touch $CANARY')",
}


@pytest.mark.parametrize(("name", "value"), ARGUMENTS.items(), ids=ARGUMENTS)
def test_arguments_of_a_shape_may_not_be_about_anything_else(
    name: str, value: Any, model: Path, selection: Path, teacher: Path, tmp_path: Path
) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Bomb()))
    value = json.loads(json.dumps(value).replace("{pickle}", f"{tmp_path}/evil.pth").replace("{elsewhere}", "/none/x"))
    change(model / "config.json", model_args__=(name, value))
    with pytest.raises(TwinbudError, match=str(model)):
        open_model_folder(model)
    student = json.loads((selection / "plan.json").read_text())["student"]
    change_plan(selection, student__=("model_args", {**student["model_args"], name: value}))
    with pytest.raises(TwinbudError):
        load_selection(selection)
    change(teacher / "config.json", model_args__=(name, value))
    with pytest.raises(TwinbudError):
        select(read_teacher_info(f"local-dir:{teacher}"))


@pytest.mark.parametrize("content", ["text", 3, None, [], [1], {"embed_dim": DEEP}])
def test_arguments_of_another_kind_are_refused(content: Any, model: Path, selection: Path) -> None:
    change(model / "config.json", model_args=content)
    with pytest.raises(TwinbudError):
        open_model_folder(model)
    change_plan(selection, student__=("model_args", content))
    with pytest.raises(TwinbudError):
        load_selection(selection)


def test_where_a_known_model_came_from_is_not_gone_to(model: Path, teacher: Path) -> None:
    """timm itself writes these into ``pretrained_cfg``; they are not followed."""
    for folder in (model, teacher):
        for name in ("file", "url", "hf_hub_id"):
            change(folder / "config.json", pretrained_cfg__=(name, "evil/x"))
    assert open_model_folder(model).classes == ("dark", "grey", "light")
    assert open_teacher(read_teacher_info(f"local-dir:{teacher}")).info.mean == (0.5, 0.4, 0.3)


JSON: dict[str, str] = {
    "nested deeply": DEEP,
    "nested deeply by name": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "a number of 100,000 digits": LONG_NUMBER,
    "a format of 100,000 digits": f'{{"format": {LONG_NUMBER}}}',
    "not UTF-8": "\udcff",
    "cut short": '{"format": 1,',
    "a list": "[1]",
    "a word": '"architecture"',
    "nothing": "",
    "null": "null",
    "an object": "{}",
}


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
def test_json_of_another_kind_is_refused_everywhere(text: str, model: Path, selection: Path, teacher: Path) -> None:
    contents = text.encode("utf-8", "surrogateescape")
    for file in (model / "config.json", selection / "plan.json", teacher / "config.json"):
        file.write_bytes(contents)
    with pytest.raises(TwinbudError, match=r"config\.json"):
        open_model_folder(model)
    with pytest.raises(TwinbudError, match="no output folder of 'twinbud select'"):
        load_selection(selection)
    with pytest.raises(TwinbudError, match="no folder in timm's layout"):
        read_teacher_info(f"local-dir:{teacher}")


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/stdin", "pipe"])
def test_json_without_an_end_is_not_waited_for(target: str, model: Path, selection: Path, teacher: Path) -> None:
    if target == "pipe":
        target = str(model / "pipe")
        os.mkfifo(target)
    for file in (model / "config.json", selection / "plan.json", teacher / "config.json"):
        file.unlink()
        file.symlink_to(target)
    with pytest.raises(TwinbudError, match=r"config\.json"):
        open_model_folder(model)
    with pytest.raises(TwinbudError, match="no output folder"):
        load_selection(selection)
    with pytest.raises(TwinbudError, match="no folder in timm's layout"):
        read_teacher_info(f"local-dir:{teacher}")


PLANS: dict[str, dict[str, Any]] = {
    "no checksums": {"sha256": None},
    "checksums of other files": {"sha256": {"../../etc/passwd": "0" * 64}},
    "files above the folder": {"sha256": {"../student.safetensors": "0" * 64, "/etc/passwd": "0" * 64}},
    "no student": {"student": "hf-hub:evil/x"},
    "means in words": {"mean": ["a", "b", "c"]},
    "means without an end": {"mean": [0.5] * 1000},
    "a deviation that is no number": {"std": [0.1, 0.1, float("nan")]},
    "widths of another kind": {"widths": {"residual": [1, 2]}},
    "a width of nought": {
        "widths": {"residual": {"teacher_size": 0, "student_size": 0, "student_indices": [], "auxiliary_indices": []}}
    },
    "a width in words": {
        "widths": {
            "residual": {"teacher_size": "a", "student_size": "b", "student_indices": [], "auxiliary_indices": []}
        }
    },
    "unknown kinds of status": {"student_tensors": {"norm.weight": 1}},
    "a list of status": {"teacher_tensors": ["dropped"]},
    "no rule": {"rule": None, "attention": None, "widths": None},
}


@pytest.mark.parametrize("changes", PLANS.values(), ids=PLANS)
def test_a_plan_that_leads_elsewhere_is_refused(changes: dict[str, Any], selection: Path) -> None:
    change_plan(selection, **changes)
    with pytest.raises(TwinbudError) as caught:
        load_selection(selection)
    assert str(selection) in str(caught.value)


@pytest.mark.parametrize("shape", [(3,), (16, 16), (1,)])
def test_a_selection_of_other_shapes_is_refused(shape: tuple[int, ...], selection: Path) -> None:
    state = read_safetensors(selection / "student.safetensors")
    contents = save({**state, "norm.weight": torch.zeros(shape)})
    (selection / "student.safetensors").write_bytes(contents)
    change_plan(selection, sha256__=("student.safetensors", hashlib.sha256(contents).hexdigest()))
    with pytest.raises(TwinbudError, match=r"not those of \S+ with the shape in plan.json \(norm.weight\)"):
        load_selection(selection)


@pytest.mark.parametrize("size", [0, -1, 10**9, 5000, True, 1.5, "28", None, DEEP])
def test_an_image_size_that_only_asks_for_memory_is_refused(size: Any, model: Path) -> None:
    change(model / "config.json", pretrained_cfg__=("input_size", [3, size, size]), model_args__=("img_size", size))
    with pytest.raises(TwinbudError, match=r"config\.json"):
        open_model_folder(model)


YAML: dict[str, str] = {
    "a tag that runs a command": "!!python/object/apply:os.system ['touch \"$CANARY\"']",
    "such a tag as a value": "seed: !!python/object/apply:os.system ['touch \"$CANARY\"']",
    "a tag that makes an object": "seed: !!python/object/new:subprocess.Popen [['sh', '-c', 'touch \"$CANARY\"']]",
    "a tag that imports": "!!python/module:os",
    "a tag of its own": "seed: !include /etc/passwd",
    "billions of aliases": "a: &a [x, x]\n"
    + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(20))
    + "data: *u",
    "merged keys by the billion": "a: &a {x: 1}\n"
    + "".join(f"{chr(98 + n)}: &{chr(98 + n)} {{<<: [*{chr(97 + n)}, *{chr(97 + n)}]}}\n" for n in range(22)),
    "an alias of itself": "data: &a [*a]",
    "nested deeply": DEEP,
    "a date that is none": "seed: 2001-99-99",
    "a number of 100,000 digits": f"seed: {LONG_NUMBER}",
    "not UTF-8": "data: \udcff",
    "several documents": "seed: 1\n---\nseed: 2\n",
    "too long": "# " + "x" * 2**20 + "\nseed: 1\n",
}
VALUES: dict[str, str] = {
    "a fraction of 1,000 digits": f"fraction: {LONG_NUMBER[:1000]}",
    "a list for a word": "teacher: [a, b]",
    "an object for a path": "split: {a: b}",
    "a method of another kind": "method: [dual]",
    "a profile of another kind": "profile: {a: b}",
    "bytes": "data: !!binary aGVsbG8=",
    "a set": "data: !!set {a, b}",
}


@pytest.mark.parametrize("text", VALUES.values(), ids=VALUES)
def test_a_setting_of_another_kind_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    answer = twinbud("train", "--config", tmp_path / "settings.yaml", "--output", tmp_path / "run")
    assert len(refusal(answer)) < 3000
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_settings_of_a_stranger_are_refused_in_one_line(
    text: str, shared_images: Path, shared_run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    answer = twinbud("train", "--config", file, "--output", tmp_path / "run", "--data", shared_images)
    assert len(refusal(answer)) < 3000
    assert not (tmp_path / "run").exists()
    run = Path(shutil.copytree(shared_run, tmp_path / "other"))
    shutil.copy(file, run / "config.yaml")
    assert len(refusal(twinbud("evaluate", run, "--output", tmp_path / "out"))) < 3000
    assert not (tmp_path / "out").exists()


def test_settings_without_an_end_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "settings.yaml")
    for file in (tmp_path / "settings.yaml", Path("/dev/zero"), tmp_path):
        assert "the settings cannot be read" in refusal(twinbud("train", "--config", file, "--output", "none"))
    with pytest.raises(OSError, match="not a regular file"):
        read_yaml(Path("/dev/zero"))


TABLES: dict[str, bytes] = {
    "paths above the folder": b"image_path,label\n../../../../etc/passwd,a\n/etc/hostname,b\n/etc/hosts,a\n",
    "a null byte": b"image_path,label\n\0,a\n",
    "a null byte in a name": b"image_path,label\na\0.png,a\nb.png,b\n",
    "one cell without an end": b'image_path,label\n"' + b"x" * 300_000 + b"\n",
    "a name too long": b"image_path,label\n" + b"x" * 10_000 + b",a\n",
    "a header without an end": b"x," * 100_000,
    "not UTF-8": b"image_path,label\n\xff,a\n",
    "a formula": b"image_path,label\n=cmd|' /C calc'!A0,a\n",
}


@pytest.mark.parametrize("contents", TABLES.values(), ids=TABLES)
def test_tables_of_a_stranger_are_refused_in_one_line(
    contents: bytes, shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    table.write_bytes(contents)
    assert len(refusal(train(table, shared_teacher, tmp_path / "run"))) < 30_000
    table.write_bytes(contents.replace(b"label", b"split"))
    assert len(refusal(train(shared_images, shared_teacher, tmp_path / "run", "--split", table))) < 30_000
    assert not (tmp_path / "run").exists()


def test_a_split_without_an_end_is_not_waited_for(shared_images: Path, shared_teacher: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "split.csv")
    line = refusal(train(shared_images, shared_teacher, tmp_path / "run", "--split", tmp_path / "split.csv"))
    assert "split.csv: the CSV cannot be read (not a regular file)." in line


def stop_early(folder: Path, identity: dict[str, Any]) -> CheckpointFolder:
    """Two checkpoints of a run."""
    checkpoints = CheckpointFolder(folder, identity)
    for step in (1, 2):
        position = START.__class__(**{**vars(START), "num_steps": step})
        checkpoints.save(Checkpoint(position=position, tensors={"student.a": torch.full((2,), float(step))}))
    return checkpoints


def seal(folder: Path, tensors: bytes, position: object, **others: Any) -> None:
    """A checkpoint whose checksums are right."""
    text = json.dumps({"identity": {}, "sha256": hashlib.sha256(tensors).hexdigest(), "position": position, **others})
    (folder / "tensors.safetensors").write_bytes(tensors)
    (folder / "position.json").write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


PLACE = {"num_steps": 2, "epoch": 1, "batch": 0, "running_means": [], "seconds": 0.0, "records": []}
GOOD = save({"student.a": torch.zeros(2)})
CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    **{name: lambda folder, data=data: seal(folder, data, PLACE) for name, data in WEIGHTS.items()},
    "a position that is a word": lambda folder: seal(folder, GOOD, "x"),
    "a position that is a list": lambda folder: seal(folder, GOOD, [1]),
    "a position without numbers": lambda folder: seal(folder, GOOD, {**PLACE, "epoch": "1"}),
    "a step of 10^400": lambda folder: seal(folder, GOOD, {**PLACE, "num_steps": -(10**400)}),
    "records that are none": lambda folder: seal(folder, GOOD, {**PLACE, "records": [{"command": "touch"}]}),
    "more than a position": lambda folder: seal(folder, GOOD, {**PLACE, "__class__": "os.system"}),
    "no checksum": lambda folder: seal(folder, GOOD, PLACE, sha256=None),
    "a position nested deeply": lambda folder: (folder / "position.json").write_text(
        f"{hashlib.sha256(DEEP.encode()).hexdigest()}\n{DEEP}"
    ),
    "tensors without an end": lambda folder: (
        (folder / "tensors.safetensors").unlink(),
        (folder / "tensors.safetensors").symlink_to("/dev/zero"),
    ),
    "a position without an end": lambda folder: (
        (folder / "position.json").unlink(),
        os.mkfifo(folder / "position.json"),
    ),
}


@pytest.mark.parametrize("damage", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_checkpoint_of_a_stranger_is_named_and_the_older_one_used(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    checkpoints = stop_early(tmp_path / "checkpoints", {})
    damage(tmp_path / "checkpoints" / "step-00000002")
    found, complaints = checkpoints.latest()
    assert found is not None
    assert found.position.num_steps == 1
    assert len(complaints) == 1
    assert complaints[0].startswith("checkpoint step-00000002 is damaged and was not used (")


def test_a_run_of_a_stranger_is_resumed_inside_its_own_folder(
    shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    """Its marker and its checkpoints are links to a user's own files."""
    mine, run = tmp_path / "mine", tmp_path / "run"
    for folder in (mine / "step-00000009", run):
        folder.mkdir(parents=True)
    (mine / "notes.txt").write_text("mine")
    (mine / "step-00000009" / "notes.txt").write_text("mine")
    (run / "UNFINISHED").symlink_to(mine / "notes.txt")
    (run / "checkpoints").symlink_to(mine)
    (run / "metrics.json").symlink_to(mine / "notes.txt")
    (run / "model").symlink_to(mine)
    trained(shared_images, shared_teacher, run, "--resume", "--checkpoint-seconds", 0)
    assert sorted(path.relative_to(mine).as_posix() for path in mine.rglob("*")) == [
        "notes.txt", "step-00000009", "step-00000009/notes.txt"
    ]  # fmt: skip
    assert {path.read_text() for path in mine.rglob("*.txt")} == {"mine"}
    assert not any(path.is_symlink() for path in run.rglob("*"))


def test_links_among_checkpoints_are_neither_read_nor_removed(tmp_path: Path) -> None:
    folder, mine = tmp_path / "checkpoints", tmp_path / "mine"
    checkpoints = stop_early(folder, {})
    shutil.move(folder / "step-00000001", mine)
    (folder / "step-00000000").symlink_to(mine)
    (folder / "step-00000003").symlink_to(mine)
    found, complaints = checkpoints.latest()
    assert found is not None
    assert (found.position.num_steps, complaints) == (2, [])
    checkpoints.save(Checkpoint(position=found.position, tensors=found.tensors))
    assert sorted(path.name for path in mine.iterdir()) == ["position.json", "tensors.safetensors"]


def test_a_linked_image_is_read_and_nothing_is_written_through_it(shared_teacher: str, tmp_path: Path) -> None:
    images = save_images(tmp_path / "images", {"a": 4, "b": 4})
    elsewhere = tmp_path / "elsewhere.png"
    shutil.move(images / "a" / "000.png", elsewhere)
    (images / "a" / "000.png").symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    trained(images, shared_teacher, tmp_path / "run")
    assert elsewhere.read_bytes() == before
