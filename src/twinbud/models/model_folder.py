"""The model folder in timm's own layout, ``config.json`` and ``model.safetensors``.

timm alone can open it, unless the network is narrower than timm's arguments can build it: ``config.json`` then names an
architecture that timm does not know, and ``twinbud.open_model`` opens it. ``report.model_card`` adds the model card.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save

from twinbud.config.reading import Reading
from twinbud.config.task import TASK_NAMES
from twinbud.core.errors import TwinbudError, explained_writes, first_few
from twinbud.core.files import read_json
from twinbud.data.preprocessing import Preprocessing
from twinbud.models.families.base import TimmModel
from twinbud.models.narrowing import build_network, outline_network, shapes_of
from twinbud.models.student_spec import StudentSpec
from twinbud.models.untrusted import NARROWED, read_architecture, read_architecture_of, read_model_args
from twinbud.models.weights_file import read_safetensors, without_aliases
from twinbud.tasks.base import Task
from twinbud.tasks.opening import open_task

OPENED_BY_TWINBUD = ("import twinbud", 'model = twinbud.open_model("PATH")  # PATH: this folder')
"""The two lines that open a model folder that timm alone cannot open."""
_NARROWED_NOTE = (
    "timm alone cannot open this folder: the network is timm's {} with fewer channels, which no argument of timm gives."
    " The shapes of its tensors are those in model.safetensors."
)


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A trained classifier, in evaluation mode.

    Attributes:
        model: The network.
        task: What it answers; it has the class names in their order.
        preprocessing: From decoded images to the network's input.
        reading: From files to decoded images.
    """

    model: TimmModel
    task: Task
    preprocessing: Preprocessing
    reading: Reading = Reading()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the probabilities."""
        return self.task.classes


def save_model_folder(
    folder: Path,
    model: TimmModel,
    student_spec: StudentSpec,
    *,
    image_size: int,
    classes: tuple[str, ...],
    reading: Reading | None = None,
    task: Task | None = None,
) -> None:
    """Write ``config.json`` and ``model.safetensors`` into an existing folder.

    Args:
        folder: An existing folder.
        model: The network.
        student_spec: Its architecture and normalization.
        image_size: Side of its images in pixels.
        classes: Class names, in the order of its outputs; empty for a network without a classifier.
        reading: How the files of its images were read; the default reading by default.
        task: What it answers; None for one class an image.
    """
    num_outputs = task.num_outputs if task else len(classes)
    preprocessing = student_spec.preprocessing(image_size)
    config = {
        "architecture": student_spec.architecture + (NARROWED if student_spec.shapes else ""),
        "num_classes": num_outputs,
        "num_features": model.num_features,
        **({"label_names": list(classes)} if classes else {}),
        **(task.to_json() if task else {}),
        "model_args": student_spec.timm_arguments(image_size),
        "preprocessing": preprocessing.to_json(),
        "reading": (reading or Reading()).to_json(),
        "pretrained_cfg": _timm_config(model, student_spec, preprocessing, num_outputs),
    }
    if student_spec.shapes:
        config |= {"note": _NARROWED_NOTE.format(student_spec.architecture), "open_with": list(OPENED_BY_TWINBUD)}
    with explained_writes(folder):
        state = without_aliases(model.state_dict())
        # not by safetensors itself, whose error hides a full disk
        (folder / "model.safetensors").write_bytes(save(state, metadata={"format": "pt"}))
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _timm_config(
    model: TimmModel, student_spec: StudentSpec, preprocessing: Preprocessing, num_outputs: int
) -> dict[str, Any]:
    """Return the ``pretrained_cfg`` with which timm's own transform gives the same pixels as twinbud's."""
    known = model.pretrained_cfg or {}
    return {
        **preprocessing.to_timm(),
        "fixed_input_size": "img_size" in student_spec.timm_arguments(preprocessing.image_size),
        "pool_size": None,
        "first_conv": known.get("first_conv"),
        "classifier": known.get("classifier"),
        "num_classes": num_outputs,
    }


def open_model_folder(folder: Path) -> ModelFolder:
    """Open a model folder that twinbud wrote.

    Raises:
        TwinbudError: It is not a model folder, or its files do not fit together.
    """
    config, preprocessing, reading = _read_config(folder)
    state = read_safetensors(folder / "model.safetensors")
    thresholds = tuple(config.get("thresholds", ()))
    task = open_task(config.get("task", "single"), tuple(config["label_names"]), thresholds=thresholds)
    name, is_narrowed = read_architecture_of(config)
    architecture = read_architecture(name, folder / "config.json")
    arguments: dict[str, Any] = read_model_args(config.get("model_args", {}), folder / "config.json")
    arguments |= {"num_classes": task.num_outputs}
    # shapes first, so that a wrong config.json cannot allocate more memory than the weights have
    found = shapes_of(state)
    shapes = found if is_narrowed else None
    implied = shapes_of(outline_network(architecture, str(folder), shapes, **arguments).state_dict())
    wrong = sorted(name for name in implied | found if implied.get(name) != found.get(name))
    if wrong:
        differences = (f"{n}: {found.get(n, 'missing')}, config.json implies {implied.get(n, 'none')}" for n in wrong)
        raise TwinbudError(
            f"the weights do not fit config.json ({first_few(differences, 2)})",
            where=str(folder),
            fix="Copy the whole model folder again",
        )
    model = build_network(architecture, str(folder), shapes, **arguments)
    model.load_state_dict(state)
    return ModelFolder(
        model=model.eval().requires_grad_(False),
        task=task,
        preprocessing=preprocessing,
        reading=reading,
    )


def _read_config(folder: Path) -> tuple[dict[str, Any], Preprocessing, Reading]:
    """Read and check ``config.json``."""
    path = folder / "config.json"
    fix = "Give RUN, or RUN/model, of a finished 'twinbud train'"
    if not path.is_file():
        problem = "no model folder: config.json is missing"
        raise TwinbudError(problem, where=str(folder), fix=fix)
    try:
        config = read_json(path)
        preprocessing = _read_preprocessing(config)
        reading = Reading.from_json(config.get("reading", {}))  # folders of earlier versions have none
        names, _ = config["label_names"], config["architecture"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("label_names is not a list of names")
        thresholds = config.get("thresholds", [0.5] * len(names))
        if len(thresholds) != len(names) or not all(0 <= float(threshold) <= 1 for threshold in thresholds):
            raise ValueError("thresholds is not a list of one probability for each of label_names")
        if config.get("task", "single") not in TASK_NAMES:
            raise ValueError(f"the task is {config['task']!r}, which is none of {', '.join(TASK_NAMES)}")
        image_size = config.get("model_args", {}).get("img_size", preprocessing.image_size)
        if image_size != preprocessing.image_size:
            raise ValueError(f"img_size is {image_size!r}, but the images have {preprocessing.image_size} pixels")
    except KeyError as error:
        raise TwinbudError(f"config.json lacks {error}", where=str(folder), fix=fix) from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TwinbudError(f"config.json is not usable: {error}", where=str(folder), fix=fix) from error
    return config, preprocessing, reading


def _read_preprocessing(config: dict[str, Any]) -> Preprocessing:
    """Read the preprocessing from timm's configuration; twinbud's own, where it is given, must agree."""
    from_timm = Preprocessing.from_timm(config["pretrained_cfg"])
    if "preprocessing" in config and Preprocessing.from_json(config["preprocessing"]) != from_timm:
        raise ValueError("preprocessing and pretrained_cfg disagree about the input of the network")
    return from_timm
