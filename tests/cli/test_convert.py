"""The conversion that errors advise: it reads every usual form of checkpoint, runs none of its code, and opens."""

from __future__ import annotations

import argparse
import errno
import json
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from helpers.advice import run_advice
from helpers.builders import random_model
from twinbud.cli.convert import convert, main
from twinbud.core.errors import TwinbudError
from twinbud.models.teacher import open_teacher, read_teacher_info

ARCHITECTURE = "test_convnext"


@pytest.fixture(scope="module")
def network() -> Any:
    return random_model(ARCHITECTURE, num_classes=5)


State = dict[str, torch.Tensor]


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def noise(state: State) -> State:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def shared(state: State) -> State:
    """Norm weights as views of one tensor, and linear weights stored transposed."""
    flat = torch.cat([tensor.flatten() for tensor in state.values()])
    sizes = [tensor.numel() for tensor in state.values()]
    views = {n: part.view_as(state[n]) for n, part in zip(state, flat.split(sizes), strict=True)}
    return {n: t.T.contiguous().T if t.dim() == 2 else t for n, t in views.items()}


class Unknown:
    """A class that the reader does not have, once it is pickled."""


FORMS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "ordered": OrderedDict,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": state, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
    "model_state": lambda state: {"model_state": state, "cfg": {"a": [1, None, "b"]}},
    "namespace": lambda state: {"arch": ARCHITECTURE, "state_dict": state, "args": argparse.Namespace(lr=0.1)},
    "unknown class": lambda state: {"state_dict": state, "config": Unknown(), "path": Path("x")},
    "numpy": lambda state: {"state_dict": state, "best_acc1": np.float64(81.2), "counts": np.arange(3)},
    "module": lambda state: prefixed(state, "module."),
    "compiled": lambda state: {"state_dict": prefixed(state, "_orig_mod.module.")},
    "lightning": lambda state: {"state_dict": {**prefixed(state, "model."), "criterion.weight": torch.ones(5)}},
    "teacher and student": lambda state: {
        "student": prefixed(noise(state), "module.backbone."),
        "teacher": {**prefixed(state, "module.backbone."), "module.head.mlp.0.weight": torch.ones(2, 2)},
    },
    "moving average": lambda state: {"state_dict": noise(state), "state_dict_ema": state},
    "no classifier": lambda state: {name: tensor for name, tensor in state.items() if not name.startswith("head.fc")},
    "shared memory": shared,
    "parameters": lambda state: {name: nn.Parameter(tensor) for name, tensor in state.items()},
    "buffers": lambda state: {"model": state, "steps": torch.tensor(3), "mask": torch.zeros(2, dtype=torch.bool)},
    "half": lambda state: {name: tensor.half() for name, tensor in state.items()},
    "deeply nested": lambda state: {"ckpt": {"nets": {"encoder": prefixed(state, "encoder.")}}},
}


def assert_opens(path: Path, network: Any, *, atol: float = 0.0) -> None:
    opened = open_teacher(read_teacher_info(f"{ARCHITECTURE}@{path}")).model
    for name, tensor in opened.state_dict().items():
        torch.testing.assert_close(tensor, network.state_dict()[name], rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_checkpoint_is_converted(form: str, network: Any, tmp_path: Path) -> None:
    torch.save(FORMS[form](network.state_dict()), tmp_path / "weights.pth")
    line = convert(f"{ARCHITECTURE}@{tmp_path}/weights.pth")
    assert f'--teacher "{ARCHITECTURE}@{tmp_path / "weights.safetensors"}"' in line
    assert_opens(tmp_path / "weights.safetensors", network, atol=1e-3 if form == "half" else 0.0)


@pytest.mark.parametrize("name", ["best model.v1.pth.tar", "a$b'c.ckpt", "weights.bin", "checkpoint"])
def test_the_printed_command_converts_files_of_any_name(name: str, network: Any, tmp_path: Path) -> None:
    torch.save(FORMS["namespace"](network.state_dict()), tmp_path / name)
    with pytest.raises(TwinbudError) as caught:
        read_teacher_info(f"{ARCHITECTURE}@{tmp_path / name}")
    run_advice(str(caught.value))
    (written,) = tmp_path.glob("*.safetensors")
    assert_opens(written, network)


def test_a_file_of_torchs_old_format_is_converted(network: Any, tmp_path: Path) -> None:
    content = FORMS["namespace"](network.state_dict())
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    convert(f"{ARCHITECTURE}@{tmp_path}/weights.pth")
    assert_opens(tmp_path / "weights.safetensors", network)


def test_a_folder_with_a_pickle_is_converted_in_place(network: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": ARCHITECTURE}))
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(TwinbudError) as caught:
        open_teacher(read_teacher_info(f"local-dir:{tmp_path}"))
    run_advice(str(caught.value))
    assert open_teacher(read_teacher_info(f"local-dir:{tmp_path}")).model.num_classes == 5


def test_a_safetensors_file_with_a_wrappers_prefix_opens_as_it_is(network: Any, tmp_path: Path) -> None:
    save_file(prefixed(network.state_dict(), "module."), tmp_path / "module.safetensors")
    assert_opens(tmp_path / "module.safetensors", network)


def test_a_safetensors_file_with_more_than_the_network_is_refused_with_a_command_that_works(
    network: Any, tmp_path: Path
) -> None:
    state = {**prefixed(network.state_dict(), "backbone."), "projector.weight": torch.ones(2)}
    save_file(state, tmp_path / "all.safetensors")
    with pytest.raises(TwinbudError, match=r"holds more than test_convnext") as caught:
        open_teacher(read_teacher_info(f"{ARCHITECTURE}@{tmp_path}/all.safetensors"))
    assert "left out: projector.weight" in run_advice(str(caught.value))
    assert_opens(tmp_path / "all-converted.safetensors", network)


def test_a_one_channel_teacher_is_refused_with_a_command_that_works(tmp_path: Path) -> None:
    gray = random_model(ARCHITECTURE, num_classes=5, in_chans=1)
    save_file(gray.state_dict(), tmp_path / "gray.safetensors")
    with pytest.raises(TwinbudError, match="takes images of 1 channel") as caught:
        open_teacher(read_teacher_info(f"{ARCHITECTURE}@{tmp_path}/gray.safetensors"))
    run_advice(str(caught.value))
    opened = open_teacher(read_teacher_info(f"{ARCHITECTURE}@{tmp_path}/gray-converted.safetensors")).model
    images = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(opened(images.repeat(1, 3, 1, 1)), gray(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("known", [{"num_classes": 5, "first_conv": "stem.0", "input_size": [1, 64, 64]}, {}])
def test_a_one_channel_folder_is_refused_with_a_command_that_works(known: dict[str, Any], tmp_path: Path) -> None:
    """Older timm saves neither the number of classes nor the name of the first layer."""
    gray = random_model(ARCHITECTURE, num_classes=5, in_chans=1)
    folder = tmp_path / "gray"
    folder.mkdir()
    save_file(gray.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": 5,
        "model_args": {"in_chans": 1},
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, **known},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TwinbudError, match="takes images of 1 channel") as caught:
        read_teacher_info(f"local-dir:{folder}")
    run_advice(str(caught.value))
    teacher = open_teacher(read_teacher_info(f"local-dir:{folder}-rgb"))
    assert teacher.info.mean == (0.5, 0.5, 0.5)
    images = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(teacher.model(images.repeat(1, 3, 1, 1)), gray(images), rtol=1e-4, atol=1e-5)


def test_a_teacher_of_four_channels_is_refused_without_a_command_that_could_not_help(tmp_path: Path) -> None:
    save_file(random_model(ARCHITECTURE, in_chans=4).state_dict(), tmp_path / "four.safetensors")
    with pytest.raises(TwinbudError, match=r"takes images of 4 channels, .*\. Choose another teacher\.$"):
        open_teacher(read_teacher_info(f"{ARCHITECTURE}@{tmp_path}/four.safetensors"))


def test_original_dinov2_names_are_translated(tmp_path: Path) -> None:
    """Meta's files hold a mask token, and register tokens under another name."""
    model = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, img_size=28)
    state = model.state_dict()
    original = {"register_tokens" if name == "reg_token" else name: tensor for name, tensor in state.items()}
    original["pos_embed"] = torch.cat([torch.zeros(1, 1, 384), original["pos_embed"]], dim=1)
    original["mask_token"] = torch.zeros(1, 384)
    torch.save(original, tmp_path / "dinov2.pth")
    convert(f"vit_small_patch14_reg4_dinov2@{tmp_path}/dinov2.pth")
    opened = open_teacher(read_teacher_info(f"vit_small_patch14_reg4_dinov2@{tmp_path}/dinov2.safetensors")).model
    assert torch.equal(opened.reg_token, state["reg_token"])
    assert torch.equal(opened.blocks[3].mlp.fc1.weight, state["blocks.3.mlp.fc1.weight"])


class Bomb:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.arguments


def test_code_in_a_checkpoint_never_runs(network: Any, tmp_path: Path) -> None:
    canary = tmp_path / "executed"
    for number, bomb in enumerate((Bomb(eval, f"open({str(canary)!r}, 'w')"), Bomb(os.mkdir, str(canary)))):
        for zipped in (True, False):
            path = tmp_path / f"{number}{zipped}.pth"
            torch.save({"state_dict": network.state_dict(), "x": bomb}, path, _use_new_zipfile_serialization=zipped)
            with suppress(TwinbudError):
                convert(f"{ARCHITECTURE}@{path}")
            assert not canary.exists()


@pytest.mark.parametrize("entry", ["student", None])
def test_an_entry_can_be_named(entry: str | None, network: Any, tmp_path: Path) -> None:
    torch.save({"student": noise(network.state_dict()), "teacher": network.state_dict()}, tmp_path / "w.pth")
    assert f"of '{entry or 'teacher'}'" in convert(f"{ARCHITECTURE}@{tmp_path}/w.pth", entry=entry)


def test_a_wrong_entry_is_told_of_those_that_can_be_named(network: Any, tmp_path: Path) -> None:
    torch.save({"student": noise(network.state_dict()), "teacher": network.state_dict()}, tmp_path / "w.pth")
    with pytest.raises(TwinbudError) as caught:
        convert(f"{ARCHITECTURE}@{tmp_path}/w.pth", entry="foo")
    assert str(caught.value) == (
        f"--entry: 'foo' holds no weights of timm's {ARCHITECTURE}. Give one of: teacher, student, or leave it out."
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "torch cannot read tensors"),
        (b"no checkpoint", "torch cannot read tensors"),
        (None, "no such file"),
        ({"state_dict": {"a.weight": torch.ones(2)}}, "no weights of timm's test_convnext"),
        (nn.Linear(2, 2), "save its state_dict() instead"),
    ],
    ids=["empty", "text", "missing", "another network", "a whole module"],
)
def test_what_cannot_be_converted_is_refused_in_one_line(
    content: Any, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    assert main([f"{ARCHITECTURE}@{path}"]) == 2
    line = capsys.readouterr().err
    assert problem in line
    assert line.count("\n") == 1
    assert not list(tmp_path.glob("*.safetensors"))


def test_an_existing_file_is_never_overwritten(network: Any, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    (tmp_path / "weights.safetensors").write_text("mine")
    with pytest.raises(TwinbudError, match="exists already"):
        convert(f"{ARCHITECTURE}@{tmp_path}/weights.pth")
    convert(f"{ARCHITECTURE}@{tmp_path}/weights.pth", output=tmp_path / "other.safetensors")
    assert (tmp_path / "weights.safetensors").read_text() == "mine"


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_full_disk_leaves_nothing_that_stands_in_the_way_of_the_next_attempt(
    is_folder: bool, network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, teacher = network.state_dict(), f"{ARCHITECTURE}@{tmp_path}/weights.pth"
    torch.save(state, tmp_path / "weights.pth")
    if is_folder:
        (tmp_path / "gray").mkdir()
        save_file(random_model(ARCHITECTURE, in_chans=1).state_dict(), tmp_path / "gray" / "model.safetensors")
        config = {"architecture": ARCHITECTURE, "model_args": {"in_chans": 1}, "pretrained_cfg": {}}
        (tmp_path / "gray" / "config.json").write_text(json.dumps(config))
        teacher = f"local-dir:{tmp_path}/gray"
    before = sorted(tmp_path.rglob("*"))
    with monkeypatch.context() as patch:
        write = Path.write_bytes

        def fill_the_disk(path: Path, contents: bytes) -> int:
            write(path, contents[: len(contents) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(Path, "write_bytes", fill_the_disk)
        with pytest.raises(TwinbudError, match="disk is full"):
            convert(teacher)
    assert sorted(tmp_path.rglob("*")) == before
    assert convert(teacher).startswith("wrote ")
