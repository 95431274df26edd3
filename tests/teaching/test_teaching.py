"""Features of any network, their maps to the source's, and how they are measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.neighbors import KNeighborsClassifier

from helpers.builders import CONVNEXT, VIT, half_preprocessing, random_model
from twinbud.core.errors import TwinbudError
from twinbud.core.progress import SilentProgress
from twinbud.models.outline import outline
from twinbud.teaching.features import Features, extract_features, require_feature_shape
from twinbud.teaching.quality import (
    MeasuredImages,
    explained_variance,
    features_of,
    largest_class_share,
    measure_quality,
    neighbor_accuracy,
)
from twinbud.teaching.source import Source, Whitening
from twinbud.training.unlabelled import UnlabelledImages

NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "tokens after one prefix token": ("vit_tiny_patch16_224", VIT, 28),
    "tokens after five prefix tokens": ("vit_tiny_patch16_224", {**VIT, "reg_tokens": 4}, 28),
    "channels first": ("convnext_tiny", CONVNEXT, 64),
    "channels last": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)},
        32,
    ),
    "batch norm": ("resnet10t", {}, 64),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[Any, int]:
    architecture, arguments, size = NETWORKS[request.param]
    return random_model(architecture, **arguments, num_classes=0), size


def test_the_vector_is_what_timm_gives_a_classifier(network: tuple[Any, int]) -> None:
    model, size = network
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(extract_features(model, images).pooled_BP, model(images))


def test_the_map_is_the_last_one_of_timms_own_intermediates(network: tuple[Any, int]) -> None:
    model, size = network
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        (theirs,) = model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        ours = extract_features(model, images).spatial_BDHW
    assert ours.shape[2] == ours.shape[3] > 1
    torch.testing.assert_close(ours, theirs)


def test_a_network_that_pools_nothing_still_has_one_vector_for_an_image() -> None:
    images = torch.randn(2, 3, 28, 28)
    pooling, silent = (
        random_model("vit_tiny_patch16_224", **VIT, num_classes=0, global_pool=pool) for pool in ("token", "")
    )
    with torch.no_grad():
        assert torch.equal(extract_features(silent, images).pooled_BP, extract_features(pooling, images).pooled_BP)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("crossvit_tiny_240", "forward_features gives a list"), ("pit_ti_224", "single position")],
)
def test_a_network_without_a_map_is_refused(architecture: str, reason: str) -> None:
    config = timm.get_pretrained_cfg(architecture)
    assert config is not None
    size = config.input_size[-1]
    network = outline(architecture, "test", num_classes=0)
    with pytest.raises(TwinbudError, match=f"--architecture: {architecture} has .*{reason}"):
        require_feature_shape(network, architecture, size, "--architecture")


def test_the_source_sees_resized_images_and_gives_maps_of_the_learners_grid() -> None:
    model = random_model("vit_tiny_patch16_224", **VIT, num_classes=0)
    images = torch.full((2, 3, 24, 24), 0.5)
    found = Source(model, image_size=28, grid=(2, 3), bf16=False).features(images)
    whole = Source(model, image_size=28, grid=(4, 4), bf16=False).features(torch.full((2, 3, 28, 28), 0.5))
    assert found.spatial_BDHW.shape == (2, 32, 2, 3)
    torch.testing.assert_close(found.pooled_BP, whole.pooled_BP)
    torch.testing.assert_close(
        found.spatial_BDHW.mean(dim=(2, 3)), whole.spatial_BDHW.mean(dim=(2, 3)), atol=0.2, rtol=0
    )


def test_whitened_channels_have_mean_0_and_variance_1_even_if_one_is_constant() -> None:
    raw = Features(torch.randn(50, 4, 3, 3) * 7 + 100, torch.randn(50, 5) * 0.01 - 3)
    raw.pooled_BP[:, 2] = 1.5
    whitening = Whitening.of(raw, 40)
    assert all(
        torch.equal(tensor, getattr(Whitening.from_tensors(whitening.tensors()), name))
        for name, tensor in vars(whitening).items()
    )
    found = whitening(Features(raw.spatial_BDHW[:40], raw.pooled_BP[:40]))
    for part in (found.spatial_BDHW.transpose(0, 1).flatten(1), found.pooled_BP.T):
        torch.testing.assert_close(part.mean(dim=1), torch.zeros(len(part)), atol=1e-4, rtol=0)
    ones = torch.tensor([1.0, 1, 0, 1, 1])
    torch.testing.assert_close(found.pooled_BP.std(dim=0, correction=0), ones, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.spatial_BDHW.std(dim=(0, 2, 3), correction=0), torch.ones(4), atol=1e-3, rtol=0)


def test_explained_variance_is_scikit_learns_r2_of_a_ridge_regression() -> None:
    generator = np.random.default_rng(0)
    inputs, weights = generator.normal(size=(300, 6)), generator.normal(size=(6, 4))
    targets = inputs @ weights + generator.normal(size=(300, 4))
    found = explained_variance(inputs[:200], targets[:200], inputs[200:], targets[200:])
    reference = Ridge(alpha=1.0).fit(inputs[:200], targets[:200]).predict(inputs[200:])
    assert found == pytest.approx(r2_score(targets[200:], reference, multioutput="variance_weighted"), abs=0.02)
    assert explained_variance(inputs[:200], inputs[:200] @ weights, inputs[200:], inputs[200:] @ weights) > 0.999
    noise = generator.normal(size=(300, 6))
    assert explained_variance(noise[:200], targets[:200], noise[200:], targets[200:]) < 0.1


def test_neighbor_accuracy_is_scikit_learns_with_each_group_left_out() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(60, 5)).astype(np.float32)
    labels, groups = generator.integers(0, 3, 60), generator.integers(0, 25, 60)
    vectors[:, 0] += labels
    correct = []
    for group in set(groups.tolist()):
        inside = groups == group
        classifier = KNeighborsClassifier(1, metric="cosine").fit(vectors[~inside], labels[~inside])
        correct += (classifier.predict(vectors[inside]) == labels[inside]).tolist()
    assert neighbor_accuracy(vectors, labels, groups) == pytest.approx(np.mean(correct))


def test_a_copy_of_an_image_is_no_neighbor() -> None:
    vectors = np.array([[1, 0], [1, 0], [1, 0.1], [1, 0.1]], dtype=np.float32)
    labels, copies = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1])
    assert neighbor_accuracy(vectors, labels, np.arange(4)) == 1
    assert neighbor_accuracy(vectors, labels, copies) == 0


def test_without_two_classes_there_is_no_neighbor_accuracy() -> None:
    assert neighbor_accuracy(np.ones((3, 2), np.float32), np.zeros(3, int), np.arange(3)) is None
    assert neighbor_accuracy(np.zeros((0, 2), np.float32), np.zeros(0, int), np.zeros(0, int)) is None
    assert largest_class_share(np.zeros(0, int)) is None
    assert largest_class_share([0, 1, 1, 2]) == 0.5


def test_maps_are_kept_of_the_images_that_compare_them_only() -> None:
    model = random_model("vit_tiny_patch16_224", **VIT, num_classes=0)
    pixels = torch.randint(0, 256, (150, 1, 28, 28), dtype=torch.uint8)
    images = UnlabelledImages(images_NCSS=pixels, preprocessing=half_preprocessing(), device=torch.device("cpu"))
    measured = MeasuredImages(
        images=images,
        num_fitted=70,
        num_held_out=20,
        labelled=np.arange(100, 150),
        labels=np.arange(50) % 2,
        groups=np.arange(50),
    )
    found = features_of(lambda batch: extract_features(model, batch), measured, label="", progress=SilentProgress())
    assert found.spatial_BDHW.shape == (90, 32, 4, 4)
    assert found.pooled_BP.shape == (150, 32)
    with torch.no_grad():
        alone = extract_features(model, half_preprocessing().normalization(images.device)(pixels[89:90]))
    torch.testing.assert_close(found.spatial_BDHW[89:90], alone.spatial_BDHW, rtol=1e-3, atol=1e-4)
    quality = measure_quality(found, found, measured, seed=0)
    assert quality.explained_spatial > 0.9, "a network explains itself"
    assert quality.from_tensor(quality.tensor()) == quality
