"""How much of the source's features a network has, and how well its own separate the classes.

Shape legend: N images, M rows (images or positions), D features, T target channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from twinbud.core.errors import Stopped
from twinbud.core.progress import Progress
from twinbud.core.rng import numpy_stream
from twinbud.data.prefetch import prefetch
from twinbud.teaching.features import Features
from twinbud.training.unlabelled import UnlabelledImages

_BATCH_SIZE = 64
_MAX_ROWS = 4096
"""Positions that the linear map is fitted on."""
_STRENGTHS = tuple(10.0**power for power in range(-2, 6))
"""Candidates of the ridge penalty, on standardized features."""


@dataclass(frozen=True, kw_only=True)
class FeatureQuality:
    """Quality of a network's features; higher is better.

    Attributes:
        explained_spatial: Share of the variance of the source's map, every channel alike, that a linear map of the
            network's features explains on held-out images; at most 1, and below 0 where the mean would be better.
        explained_pooled: The same for the source's vector.
        neighbor_accuracy: Share of the labelled images whose nearest neighbor, by the cosine of the vectors, has their
            label. Identical images and images of the same patient are no neighbors. None without labels.
    """

    explained_spatial: float
    explained_pooled: float
    neighbor_accuracy: float | None = None

    def tensor(self) -> torch.Tensor:
        """Return the numbers as a float64 tensor (3,), for a checkpoint."""
        values = (self.explained_spatial, self.explained_pooled, self.neighbor_accuracy)
        return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)

    @classmethod
    def from_tensor(cls, values: torch.Tensor) -> FeatureQuality:
        """Read what ``tensor`` returned."""
        spatial, pooled, neighbors = values.tolist()
        return cls(
            explained_spatial=spatial,
            explained_pooled=pooled,
            neighbor_accuracy=None if math.isnan(neighbors) else neighbors,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredImages:
    """The images that measure a network: none is a test image.

    Attributes:
        images: N images, not augmented: first those that linear maps are fitted on, which teaching trains on, then
            those that the maps are tested on, which it does not train on, then further labelled ones.
        num_fitted: Number of the first.
        num_held_out: Number of the second.
        labelled: Positions of those whose label is known, (M,) int64.
        labels: Their class indices, (M,) int64.
        groups: Their groups, (M,) int: images of one group are no neighbors.
    """

    images: UnlabelledImages
    num_fitted: int
    num_held_out: int
    labelled: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    @property
    def num_maps(self) -> int:
        """Number of images, the first ones, whose maps are compared."""
        return self.num_fitted + self.num_held_out


Extract = Callable[[torch.Tensor], Features]
"""Returns the features of normalized images."""


@torch.no_grad()
def features_of(
    extract: Extract,
    measured: MeasuredImages,
    *,
    label: str,
    progress: Progress,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Features:
    """Compute the vectors of all images, and the maps of those whose maps are compared, under a bar.

    Args:
        extract: The network.
        measured: N images.
        label: Label of the bar.
        progress: Shows the bar.
        stop_requested: Asked between batches.

    Returns:
        Maps (``num_maps``, D, H, W) and vectors (N, P), float32 on the CPU.

    Raises:
        Stopped: A stop was requested.
    """
    images = measured.images
    normalize = images.preprocessing.normalization(images.device)
    order = torch.arange(len(images), device=images.device).split(_BATCH_SIZE)
    found: list[Features] = []
    with progress.bar(label, len(order)) as advance:
        for pixels_BCSS in prefetch(images.images_NCSS, order, images.device):
            if stop_requested():
                raise Stopped("stopped while features were measured; repeat the same command with --resume")
            spatial_BDHW, pooled_BP = extract(normalize(pixels_BCSS))
            num_maps = max(0, measured.num_maps - _BATCH_SIZE * len(found))  # of this batch and the following ones
            found.append(Features(spatial_BDHW[:num_maps].float().cpu(), pooled_BP.float().cpu()))
            advance(len(found))
    return Features(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def measure_quality(found: Features, targets: Features, measured: MeasuredImages, *, seed: int) -> FeatureQuality:
    """Measure a network's features.

    Args:
        found: What ``features_of`` returned for the network.
        targets: The same for the source, whitened, with maps of the same size.
        measured: The images.
        seed: Chooses the positions that the map is fitted on.
    """
    fitted, held_out = slice(measured.num_fitted), slice(measured.num_fitted, measured.num_maps)
    with threadpool_limits(torch.get_num_threads()):
        spatial, pooled = (
            explained_variance(
                _rows(one[fitted], seed), _rows(other[fitted], seed), _rows(one[held_out]), _rows(other[held_out])
            )
            for one, other in zip(found, targets, strict=True)
        )
        neighbors = neighbor_accuracy(found.pooled_BP[measured.labelled].numpy(), measured.labels, measured.groups)
    return FeatureQuality(explained_spatial=spatial, explained_pooled=pooled, neighbor_accuracy=neighbors)


def _rows(features: torch.Tensor, seed: int | None = None) -> np.ndarray:
    """Return vectors (N, D), or the positions of maps (N, D, H, W) as rows; with a seed, at most ``_MAX_ROWS``."""
    rows = features if features.dim() == 2 else features.flatten(2).transpose(1, 2).flatten(0, 1)
    if seed is not None and len(rows) > _MAX_ROWS:
        chosen = numpy_stream("teaching", seed, "positions").permutation(len(rows))[:_MAX_ROWS]
        rows = rows[torch.from_numpy(np.sort(chosen))]
    return rows.double().numpy()


def explained_variance(
    fitted_MD: np.ndarray, fitted_MT: np.ndarray, held_out_MD: np.ndarray, held_out_MT: np.ndarray
) -> float:
    """Return the share of the variance of held-out targets that ridge regression explains, over all channels.

    The penalty is chosen by leave-one-out cross-validation on the fitted rows. The share is 1 − Σ(y − ŷ)² / Σ(y − ȳ)²
    with ȳ the mean of the fitted rows.

    Args:
        fitted_MD: Features of the fitted rows, float64.
        fitted_MT: Their targets.
        held_out_MD: Features of the held-out rows.
        held_out_MT: Their targets.
    """
    scaler = StandardScaler().fit(fitted_MD)
    ridge = RidgeCV(alphas=_STRENGTHS).fit(scaler.transform(fitted_MD), fitted_MT)
    errors = np.square(held_out_MT - ridge.predict(scaler.transform(held_out_MD))).sum()
    return float(1 - errors / np.square(held_out_MT - fitted_MT.mean(axis=0)).sum())


def neighbor_accuracy(vectors_ND: np.ndarray, labels_N: np.ndarray, groups_N: np.ndarray) -> float | None:
    """Return the share of vectors whose nearest neighbor of another group, by the cosine, has their label.

    Args:
        vectors_ND: float32.
        labels_N: Class indices.
        groups_N: int.

    Returns:
        A share in [0, 1]; None with fewer than two classes or two groups.
    """
    if len(set(labels_N.tolist())) < 2 or len(set(groups_N.tolist())) < 2:
        return None
    lengths = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND = vectors_ND / np.maximum(lengths, np.finfo(np.float32).tiny)
    cosines_NN = unit_ND @ unit_ND.T
    cosines_NN[groups_N[:, None] == groups_N] = -np.inf
    return float((labels_N[cosines_NN.argmax(axis=1)] == labels_N).mean())


def largest_class_share(labels: Sequence[int] | np.ndarray) -> float | None:
    """Return the accuracy of always naming the most frequent class; None without labels."""
    counts = np.bincount(np.asarray(labels, dtype=np.int64)) if len(labels) else np.zeros(0)
    return float(counts.max() / counts.sum()) if len(counts) else None
