"""Read weights from safetensors files, and name the command that converts others."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import State


def without_aliases(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return contiguous tensors on the CPU, of which no two share memory: safetensors refuses to write such.

    Some networks hold one tensor under several names.
    """
    result: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        stored = tensor.detach().cpu().contiguous()
        place = stored.untyped_storage().data_ptr()
        result[name] = stored.clone() if place in taken else stored
        taken.add(place)
    return result


def read_safetensors(path: Path, spec: str | None = None) -> State:
    """Read the tensors of a ``.safetensors`` file.

    Args:
        path: The file.
        spec: The teacher's spelling, for the command that converts a pickle; None if the file is not a teacher's.

    Raises:
        TwinbudError: The file is missing, a pickle, or not in safetensors format.
    """
    require_safetensors(path, spec)
    with _explained(path):
        return load_file(path)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shape of each tensor of a ``.safetensors`` file, but no numbers.

    Raises:
        TwinbudError: See ``read_safetensors``.
    """
    require_safetensors(path)
    with _explained(path), safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        raise TwinbudError(
            f"the file is not in safetensors format ({error})",
            where=str(path),
            fix="Copy it again, or save the weights again with safetensors",
        ) from error


def conversion_command(spec: str) -> str:
    """Return the command line that converts a teacher's checkpoint to safetensors."""
    return f"python -m twinbud.cli.convert {_quoted(spec)}"


def _quoted(word: str) -> str:
    """Return ``word`` in double quotes, which every shell reads."""
    if os.name != "nt":
        for character in '\\"$`':
            word = word.replace(character, f"\\{character}")
    return f'"{word}"'


def require_safetensors(path: Path, spec: str | None = None) -> None:
    """Refuse a file that is missing or has another suffix.

    Args:
        path: The file.
        spec: As for ``read_safetensors``.

    Raises:
        TwinbudError: The file is missing, or its suffix is not ``.safetensors``; the fix names the conversion command.
    """
    if not path.is_file():
        raise TwinbudError("no such file", where=str(path), fix="Check the path")
    if path.suffix != ".safetensors":
        raise TwinbudError(
            f"'{path.suffix}' files are not opened, since a pickle can run code; weights must be a .safetensors file",
            where=str(path),
            fix=f"To read its tensors alone, run: {conversion_command(spec)} (it never runs code from the file)"
            if spec
            else "Save the weights with safetensors",
        )
