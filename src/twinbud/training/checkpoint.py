"""Atomic, exact checkpoints: a resumed run gives bit-identical results to an uninterrupted one.

Every random choice of training is a pure function of the seed and a counter, so a checkpoint needs no random state. It
holds the student, the auxiliary, the moments of the optimizer and the position in training, in a folder of one
safetensors file and one JSON file with checksums. It is written to a draft, flushed to the disk and renamed; the last
two are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from twinbud.core.errors import TwinbudError, explained_writes, first_few
from twinbud.core.files import MAX_TEXT_BYTES, read_bytes
from twinbud.models.weights_file import without_aliases

_KEPT = 2
_MAX_SHOWN = 40
"""Characters of two values in the error for other settings."""
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError)
_TENSORS, _POSITION = "tensors.safetensors", "position.json"


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One row of the history; losses and accuracy are means over the epoch's images, before each update.

    ``loss_skd`` is the divergence from the soft targets of any variant, before its weight; None without such targets.
    Recovery, which has no labels, has a loss alone.
    """

    epoch: int
    step: int
    learning_rate: float
    loss: float
    loss_ce: float | None = None
    loss_skd: float | None = None
    accuracy: float | None = None
    seconds: float
    test_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Position:
    """The position of training.

    Attributes:
        num_steps: Optimizer steps taken.
        epoch: The current epoch, from 1; between epochs the next one.
        batch: Batches of that epoch that are done.
        running_means: State of that epoch's ``RunningMeans``.
        seconds: That epoch's wall time so far.
        records: The finished epochs.
    """

    num_steps: int
    epoch: int
    batch: int
    running_means: tuple[float, ...]
    seconds: float
    records: tuple[EpochRecord, ...]


START = Position(num_steps=0, epoch=1, batch=0, running_means=(), seconds=0.0, records=())


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A position, and the tensors of the networks and the optimizer at it."""

    position: Position
    tensors: dict[str, torch.Tensor]


class OtherRunError(TwinbudError):
    """The checkpoint was saved with other settings, images or weights."""


class CheckpointFolder:
    """The folder of the last two checkpoints of a phase.

    Args:
        folder: Made when the first checkpoint is saved.
        identity: Settings and data that must equal those of a checkpoint to continue from it, as plain JSON.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        self.identity = identity

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, which survives a crash of the machine once this returns.

        Raises:
            TwinbudError: The disk is full or the folder may not be written; earlier checkpoints stand.
        """
        name = f"step-{checkpoint.position.num_steps:08d}"
        draft, final = self.folder / f".{name}.draft", self.folder / name
        with explained_writes(self.folder):
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            try:
                tensors = save(without_aliases(checkpoint.tensors))
                content = {
                    "identity": self.identity,
                    "sha256": hashlib.sha256(tensors).hexdigest(),
                    "position": asdict(checkpoint.position),
                }
                _write_through(draft / _TENSORS, tensors)
                _write_through(draft / _POSITION, _sealed(content))
                shutil.rmtree(final, ignore_errors=True)
                draft.replace(final)
                _flush_folder(self.folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            for old in self._saved()[_KEPT:]:
                shutil.rmtree(old)

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest intact checkpoint, or None, and what is wrong with newer ones.

        Raises:
            TwinbudError: It belongs to other settings or data.
        """
        complaints: list[str] = []
        for folder in self._saved():
            try:
                return self._read(folder), complaints
            except _DAMAGE as error:
                complaints.append(f"checkpoint {folder.name} is damaged and was not used ({error})")
        return None, complaints

    def _require_same_run(self, identity: dict[str, Any], folder: Path) -> None:
        def difference(name: str) -> str:
            values = f" ({identity.get(name)} saved, {self.identity.get(name)} now)"
            return name + (values if len(values) <= _MAX_SHOWN else "")  # no checksum

        names = {*identity, *self.identity}
        other = sorted(name for name in names if identity.get(name) != self.identity.get(name))
        if other:
            raise OtherRunError(
                f"the checkpoint was saved with other values of {first_few(map(difference, other))}",
                where=str(folder),
                fix="Repeat the same command with --resume, or start again with --force",
            )

    def _saved(self) -> list[Path]:
        """Return the checkpoint folders, newest first, without drafts."""
        found = (path for path in self.folder.glob("step-*") if path.is_dir() and not path.is_symlink())
        return sorted(found, reverse=True)

    def _read(self, folder: Path) -> Checkpoint:
        content = _unsealed(read_bytes(folder / _POSITION, MAX_TEXT_BYTES))
        tensors = read_bytes(folder / _TENSORS, sys.maxsize)
        if hashlib.sha256(tensors).hexdigest() != content["sha256"]:
            raise ValueError(f"{_TENSORS} is not what was saved")
        self._require_same_run(content["identity"], folder)
        position = content["position"]
        records = tuple(EpochRecord(**record) for record in position.pop("records"))
        running_means = tuple(position.pop("running_means"))
        counts = [position[name] for name in ("num_steps", "epoch", "batch")]
        numbers = (*counts, *running_means, position["seconds"])
        if any(type(count) is not int or not 0 <= count < 2**63 for count in counts) or any(
            not isinstance(value, int | float) for value in numbers
        ):
            raise ValueError(f"{_POSITION} holds no position")
        return Checkpoint(
            position=Position(**position, running_means=running_means, records=records), tensors=load(tensors)
        )


def saved_identity(folder: Path) -> dict[str, Any]:
    """Return the identity in the newest checkpoint whose position can be read; empty without one."""
    for path in CheckpointFolder(folder, {})._saved():
        with suppress(*_DAMAGE):
            return dict(_unsealed(read_bytes(path / _POSITION, MAX_TEXT_BYTES))["identity"])
    return {}


def _sealed(content: dict[str, Any]) -> bytes:
    """Encode JSON with a checksum in its first line."""
    text = json.dumps(content)
    return f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode()


def _unsealed(data: bytes) -> dict[str, Any]:
    checksum, _, text = data.partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != checksum:
        raise ValueError(f"{_POSITION} is not what was saved")
    return json.loads(text)


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Flush a rename to the disk, where the system can flush folders."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
