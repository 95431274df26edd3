"""The model folder in timm's own layout, ``config.json`` and ``model.safetensors``, which timm alone can open.

``report.model_card`` adds the model card.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save

from twinbud.config.schema import MAX_IMAGE_SIZE
from twinbud.core.errors import TwinbudError, explained_writes, first_few
from twinbud.core.files import read_json
from twinbud.models.families.base import TimmModel
from twinbud.models.outline import outline
from twinbud.models.student_spec import StudentSpec
from twinbud.models.untrusted import read_architecture, read_model_args
from twinbud.models.weights_file import read_safetensors


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A trained classifier, in evaluation mode.

    Attributes:
        model: The network.
        classes: Class names, in the order of the network's outputs.
        image_size: Side in pixels to which images are resized, without keeping the aspect ratio.
        mean: Normalization for pixels in [0, 1].
        std: Normalization for pixels in [0, 1].
    """

    model: TimmModel
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def save_model_folder(
    folder: Path, model: TimmModel, student_spec: StudentSpec, *, image_size: int, classes: tuple[str, ...]
) -> None:
    """Write ``config.json`` and ``model.safetensors`` into an existing folder."""
    config = {
        "architecture": student_spec.architecture,
        "num_classes": len(classes),
        "num_features": model.num_features,
        "label_names": list(classes),
        "model_args": student_spec.timm_arguments(image_size),
        "pretrained_cfg": _preprocessing(model, student_spec, image_size) | {"num_classes": len(classes)},
    }
    with explained_writes(folder):
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        # not by safetensors itself, whose error hides a full disk
        (folder / "model.safetensors").write_bytes(save(state, metadata={"format": "pt"}))
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _preprocessing(model: TimmModel, student_spec: StudentSpec, image_size: int) -> dict[str, Any]:
    """Return the settings with which timm's own transform gives the same pixels as twinbud's."""
    known = model.pretrained_cfg or {}
    return {
        "input_size": [3, image_size, image_size],
        "fixed_input_size": "img_size" in student_spec.timm_arguments(image_size),
        "pool_size": None,
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "interpolation": "bicubic",
        "mean": list(student_spec.mean),
        "std": list(student_spec.std),
        "first_conv": known.get("first_conv"),
        "classifier": known.get("classifier"),
    }


def open_model_folder(folder: Path) -> ModelFolder:
    """Open a model folder that twinbud wrote.

    Raises:
        TwinbudError: It is not a model folder, or its files do not fit together.
    """
    config = _read_config(folder)
    state = read_safetensors(folder / "model.safetensors")
    preprocessing, classes = config["pretrained_cfg"], tuple(config["label_names"])
    architecture = read_architecture(config["architecture"], folder / "config.json")
    arguments: dict[str, Any] = read_model_args(config.get("model_args", {}), folder / "config.json")
    arguments |= {"num_classes": len(classes)}
    # shapes first, so that a wrong config.json cannot allocate more memory than the weights have
    shapes = {
        name: tensor.shape for name, tensor in outline(architecture, str(folder), **arguments).state_dict().items()
    }
    wrong = sorted(name for name in shapes | state if name not in state or shapes.get(name) != state[name].shape)
    if wrong:
        raise TwinbudError(
            f"the weights do not fit config.json ({first_few(wrong, 3)})",
            where=str(folder),
            fix="Copy the whole model folder again",
        )
    model = timm.create_model(architecture, pretrained=False, **arguments)
    model.load_state_dict(state)
    return ModelFolder(
        model=model.eval().requires_grad_(False),
        classes=classes,
        image_size=preprocessing["input_size"][-1],
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    """Read and check ``config.json``."""
    path = folder / "config.json"
    layout = TwinbudError(
        "no model folder: config.json is missing"
        if not path.is_file()
        else "config.json lacks architecture, label_names or pretrained_cfg, or they contradict each other",
        where=str(folder),
        fix="Give RUN, or RUN/model, of a finished 'twinbud train'",
    )
    try:
        config = read_json(path)
        preprocessing, names = config["pretrained_cfg"], config["label_names"]
        mean, std, (channels, height, width) = (preprocessing[name] for name in ("mean", "std", "input_size"))
        complete = (
            isinstance(names, list)
            and all(isinstance(name, str) for name in names)
            and len(mean) == len(std) == channels == 3
            and all(math.isfinite(value) for value in (*mean, *std))
            and min(std) > 0
            and isinstance(width, int)
            and 0 < width <= MAX_IMAGE_SIZE
            and height == width == config.get("model_args", {}).get("img_size", width)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise layout from error
    if not complete:
        raise layout
    return config
