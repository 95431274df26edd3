"""From a model and images to explanations: maps, the check with random weights, and a deletion curve for each image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from twinbud.core.errors import unknown_choice
from twinbud.core.progress import Progress
from twinbud.core.rng import numpy_stream
from twinbud.data.image_store import ImageStore
from twinbud.explaining.deletion import deletion
from twinbud.explaining.explanation import Explanation, MapKind
from twinbud.explaining.grad_cam import grad_cam
from twinbud.explaining.layers import map_layer
from twinbud.explaining.randomization import NOISE_LEVELS, MapsOf, WeightCheck, check_weights
from twinbud.explaining.rollout import attention_rollout, require_attention
from twinbud.explaining.scores import log_odds
from twinbud.models.families.base import TimmModel
from twinbud.models.model_folder import ModelFolder
from twinbud.runs.classifier import Classifier

_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Images to explain.

    Attributes:
        paths: How outputs name them.
        image_store: Their pixels, at the size of the network's input.
        true_labels: Their own labels; None where they are not known.
    """

    paths: tuple[str, ...]
    image_store: ImageStore
    true_labels: tuple[str, ...] | None = None


def require_explainable(model_folder: ModelFolder, label: str | None, kind: MapKind) -> None:
    """Refuse what cannot be explained, before images are read.

    Raises:
        TwinbudError: The model does not have the label, or has no map of that kind.
    """
    if label is not None and label not in model_folder.classes:
        raise unknown_choice("--label", label, model_folder.classes)
    if kind == "rollout":
        require_attention(model_folder.model)
    else:
        map_layer(model_folder.model, model_folder.preprocessing.image_size)


def compute_explanations(
    classifier: Classifier, chosen: Chosen, *, label: str | None, kind: MapKind, progress: Progress
) -> tuple[tuple[Explanation, ...], WeightCheck]:
    """Explain the prediction of each image, or another label, and check the maps.

    The result for an image depends on its pixels and not on the other images, except for the check with random weights,
    which is of the model and looks at the first few images.

    Args:
        classifier: The model; where it is calibrated, the probabilities are.
        chosen: The images.
        label: What to explain for every image; None for what is predicted, of several labels the most probable one.
        kind: How the maps are made.
        progress: Shows how many deletion curves are computed.

    Raises:
        TwinbudError: See ``require_explainable``.
    """
    model_folder = classifier.model_folder
    model, task, preprocessing = model_folder.model, model_folder.task, model_folder.preprocessing
    pixels = chosen.image_store.tensor(range(len(chosen.image_store)))
    images_NCSS = preprocessing.normalization(torch.device("cpu"))(pixels)
    answers = classifier.classify(chosen.image_store, paths=chosen.paths).trusted
    probabilities_NC, predicted = answers.probabilities, answers.predicted
    explained_N = predicted if task.is_exclusive else probabilities_NC.argmax(axis=1)
    if label is not None:
        explained_N = np.full(len(pixels), task.classes.index(label))
    labels_N = torch.from_numpy(explained_N)
    progress.note("comparing the maps with those of random weights")
    noise = NOISE_LEVELS / 255 / torch.tensor(preprocessing.std)[:, None, None]
    # without the ReLU, since most rectified maps of random weights are empty, which are like nothing
    check = check_weights(model, images_NCSS, _maps_of(model_folder, labels_N, kind, rectify=False), noise)
    maps_Nhw = _maps_of(model_folder, labels_N, kind)(model, images_NCSS)
    texts = answers.asked.texts(predicted)
    explanations: list[Explanation] = []
    with progress.bar("removing pixels", len(pixels)) as advance:
        for row, path in enumerate(chosen.paths):
            explanations.append(
                Explanation(
                    path=path,
                    prediction=texts[row],
                    label=task.classes[explained_N[row]],
                    probability=float(probabilities_NC[row, explained_N[row]]),
                    map=maps_Nhw[row].numpy(),
                    deletion=deletion(
                        images_NCSS[row],
                        maps_Nhw[row],
                        partial(_probability, model_folder, int(explained_N[row])),
                        numpy_stream("explanation", 0, chosen.image_store.digests[row]),
                    ),
                    model_problem=check.problem,
                    true_label=chosen.true_labels[row] if chosen.true_labels else None,
                )
            )
            advance(row + 1)
    return tuple(explanations), check


def _maps_of(model_folder: ModelFolder, labels_N: torch.Tensor, kind: MapKind, *, rectify: bool = True) -> MapsOf:
    """Return the function that computes maps of the first images, each for its label."""
    layer = map_layer(model_folder.model, model_folder.preprocessing.image_size) if kind == "grad-cam" else None

    def maps_of(model: TimmModel, images_NCSS: torch.Tensor) -> torch.Tensor:
        parts: list[torch.Tensor] = []
        for rows in torch.arange(len(images_NCSS)).split(_BATCH):
            if layer is None:
                parts.append(attention_rollout(model, images_NCSS[rows]))
            else:
                score = partial(_score, model_folder, labels_N[rows])
                parts.append(grad_cam(model, images_NCSS[rows], score, layer, rectify=rectify))
        return scaled(torch.cat(parts))

    return maps_of


def scaled(maps_Nhw: torch.Tensor) -> torch.Tensor:
    """Scale each map from its lowest to its highest value, to [0, 1]; a constant map becomes 0."""
    lowest, highest = maps_Nhw.amin((1, 2), keepdim=True), maps_Nhw.amax((1, 2), keepdim=True)
    spread = highest - lowest
    return torch.where(spread > 0, (maps_Nhw - lowest) / torch.where(spread > 0, spread, 1.0), 0.0)


def _score(model_folder: ModelFolder, labels_B: torch.Tensor, logits_BK: torch.Tensor) -> torch.Tensor:
    return log_odds(model_folder.task, logits_BK, labels_B)


@torch.inference_mode()
def _probability(model_folder: ModelFolder, label: int, images_BCSS: torch.Tensor) -> np.ndarray:
    logits = model_folder.model(images_BCSS).float().numpy()
    return model_folder.task.probabilities(logits)[:, label]
