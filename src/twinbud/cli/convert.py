"""Convert a teacher's checkpoint to safetensors: ``python -m twinbud.cli.convert TEACHER``.

This is the only place that opens a user's pickled weights, and only when a user runs it. torch's ``weights_only``
loader reads them: it builds tensors and plain containers, and every other class or function that the file names is
replaced by an inert stand-in, so that no code of the file runs.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import torch
from safetensors.torch import save
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from twinbud.core.errors import TwinbudError, first_few
from twinbud.core.files import new_folder, read_json, write_bytes, write_json
from twinbud.models.checkpoint import FoundState, find_states
from twinbud.models.families.base import State
from twinbud.models.outline import classifiers
from twinbud.models.teacher import TeacherInfo, arguments_from_weights, describe_teacher, first_convolution
from twinbud.models.weights_file import read_safetensors

USER_ERROR = 2
_COMMON_GLOBALS = ("argparse.Namespace", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")
"""What files in torch's format before version 1.6, whose content cannot be listed, often name."""
_SUFFIXES = (".tar", ".pth", ".pt", ".bin", ".ckpt", ".pkl", ".safetensors")


class _StandIn:
    """Takes the place of any class or function that a checkpoint names, and does nothing."""

    def __new__(cls, *arguments: object, **named: object) -> _StandIn:
        """Ignore the arguments."""
        del arguments, named
        return super().__new__(cls)

    def __init__(self, *arguments: object, **named: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 2 after printing one line about an error."""
    parser = ArgumentParser(prog="python -m twinbud.cli.convert", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("teacher", help="ARCHITECTURE@FILE or local-dir:FOLDER, as --teacher spells it")
    parser.add_argument("--output", type=Path, help="the file to write; default: beside the checkpoint")
    parser.add_argument("--entry", help="the entry of the checkpoint to take, such as 'model' or 'teacher'")
    words = parser.parse_args(arguments)
    try:
        print(convert(words.teacher, output=words.output, entry=words.entry))
    except TwinbudError as error:
        print(f"twinbud: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def convert(teacher: str, *, output: Path | None = None, entry: str | None = None) -> str:
    """Write the network in a checkpoint as safetensors under timm's names.

    Args:
        teacher: ``ARCHITECTURE@FILE`` or ``local-dir:FOLDER``.
        output: The file to write; by default ``FILE`` with the suffix ``.safetensors``, or
            ``FOLDER/model.safetensors``. For a folder whose network reads one channel, the folder to write; by default
            ``FOLDER-rgb``.
        entry: Dotted keys of the dictionary to take if several hold a whole network.

    Returns:
        A line that tells what was written and what was left out.

    Raises:
        TwinbudError: The checkpoint cannot be read or does not hold the architecture, or ``output`` exists.
    """
    info = describe_teacher(teacher, require_rgb=False)
    if info.file is None:
        raise TwinbudError(f"'{teacher}' has no file to convert", fix="Give ARCHITECTURE@FILE or local-dir:FOLDER")
    is_folder, stem = teacher.startswith("local-dir:"), first_convolution(info.architecture)
    found = _chosen(info, read_checkpoint(info.file), entry)
    adapts_folder = is_folder and _reads_one_channel(found.tensors, stem)
    if adapts_folder:
        output = output or info.file.parent.with_name(f"{info.file.parent.name}-rgb")
    output = output or _default_output(info.file, is_folder=is_folder)
    if output.exists():
        raise TwinbudError("it exists already", where=str(output), fix="Delete it, or choose another --output")
    contents = save(_storable(found.tensors, stem))
    if adapts_folder:
        with new_folder(output) as draft:
            _write_rgb_config(info, draft)
            write_bytes(draft / "model.safetensors", contents)
    else:
        write_bytes(output, contents)
    line = f"wrote {output} ({len(found.tensors)} tensors"
    line += f" of '{'.'.join(found.path)}'" if found.path else ""
    line += f", prefix '{found.prefix}' removed" if found.prefix else ""
    line += f"; left out: {first_few(found.left_out, 3)}" if found.left_out else ""
    kept = f"local-dir:{output}" if adapts_folder else teacher
    name = kept if is_folder else f"{teacher.partition('@')[0]}@{output}"
    return f'{line}); use it with --teacher "{name}"'


def read_checkpoint(path: Path) -> Any:
    """Read the tensors and plain containers in a checkpoint, without running code from it.

    Raises:
        TwinbudError: The file is missing, is not a checkpoint, or names a module that torch blocks.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if not path.is_file():
        raise TwinbudError("no such file", where=str(path), fix="Check the path")
    try:
        names = get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, BadZipFile, UnpicklingError, EOFError):  # an older format, or no checkpoint
        names = list(_COMMON_GLOBALS)
    try:
        with safe_globals([(_StandIn, name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files end the loader with many unrelated types
        reason = " ".join(str(error).split()).partition("Please file an issue")[0][:200]
        raise TwinbudError(
            f"torch cannot read tensors from this file ({type(error).__name__}: {reason})",
            where=str(path),
            fix="Save model.state_dict() again with safetensors or torch.save",
        ) from error


def _default_output(file: Path, *, is_folder: bool) -> Path:
    if is_folder:
        return file.with_name("model.safetensors")
    stem = file
    while stem.suffix in _SUFFIXES:
        stem = stem.with_suffix("")
    output = stem.with_name(f"{stem.name}.safetensors")
    return output if output != file else stem.with_name(f"{stem.name}-converted.safetensors")


def _chosen(info: TeacherInfo, content: Any, entry: str | None) -> FoundState:
    """Find the network in the content of a checkpoint.

    Raises:
        TwinbudError: It is not there.
    """
    body = info.outline(num_classes=0)
    heads = [f"{name}.{kind}" for name in classifiers(info.architecture) for kind in ("weight", "bias")]
    states = find_states(content, list(body.state_dict()), heads) or _foreign_states(info, content)
    if entry is not None and states:
        entries = [".".join(state.path) for state in states]
        if entry not in entries:
            problem = f"'{entry}' holds no weights of timm's {info.architecture}"
            ways = f"Give one of: {first_few(filter(None, entries))}, or leave it out"
            raise TwinbudError(problem, where="--entry", fix=ways if any(entries) else "Leave it out")
        return states[entries.index(entry)]
    if not states:
        raise TwinbudError(
            f"the file holds no weights of timm's {info.architecture}",
            where=str(info.file),
            fix="Name the architecture that was trained; if the whole module was saved, save its state_dict() instead",
        )
    return states[0]


def _foreign_states(info: TeacherInfo, content: Any) -> list[FoundState]:
    """Find weights under the names of the original authors (DINOv2, Meta's ConvNeXt), which timm itself translates."""
    states = []
    for state in find_states(content, [], []):
        model = info.outline(**arguments_from_weights(info, state.tensors))
        translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        try:
            renamed: State = translate(dict(state.tensors), model) if translate else {}
        except (KeyError, RuntimeError, ValueError, AttributeError, TypeError):  # not what it translates
            continue
        body = info.outline(num_classes=0).state_dict()
        heads = [f"{name}.{kind}" for name in classifiers(info.architecture) for kind in ("weight", "bias")]
        states += [
            FoundState(path=state.path, prefix="", tensors=found.tensors, left_out=found.left_out)
            for found in find_states(renamed, list(body), heads)
        ]
    return states


def _reads_one_channel(tensors: State, stem: str) -> bool:
    return stem in tensors and tensors[stem].dim() == 4 and tensors[stem].shape[1] == 1


def _write_rgb_config(info: TeacherInfo, folder: Path) -> None:
    """Write into ``folder`` the ``config.json`` of a gray teacher's folder, for three channels."""
    assert info.file is not None
    config = read_json(info.file.with_name("config.json"))
    saved = config.get("pretrained_cfg") or config  # timm's older layout is flat
    saved |= {"mean": list(info.mean), "std": list(info.std)}
    if "input_size" in saved:
        saved["input_size"] = [3, *saved["input_size"][1:]]
    config["model_args"] = {name: value for name, value in info.model_args.items() if name != "in_chans"}
    write_json(folder / "config.json", config)


def _storable(tensors: State, stem: str) -> State:
    """Return contiguous copies, which share no memory; a one-channel first layer is spread over three channels.

    The spread layer gives the same output for a gray image that is repeated in three channels.
    """
    stored = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    if _reads_one_channel(stored, stem):
        stored[stem] = (stored[stem] / 3).repeat(1, 3, 1, 1)
    return stored


if __name__ == "__main__":
    sys.exit(main())
