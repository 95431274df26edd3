"""The probe's classifier is scikit-learn's regression, and its folds keep groups together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers.builders import VIT, half_preprocessing, random_model
from twinbud.config.schema import TrainingConfig
from twinbud.core.errors import Stopped, TwinbudError
from twinbud.core.progress import SilentProgress
from twinbud.training.fit import LabelledImages
from twinbud.training.linear_probe import (
    DEFAULT_STRENGTH,
    STRENGTHS,
    fit_linear_classifier,
    fit_probe,
    probe_features,
    probe_folds,
)


def samples(num_classes: int, each: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clusters of features whose scales differ."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_classes), each)
    centers = generator.normal(size=(num_classes, 6))
    features = (centers[labels] + generator.normal(size=(len(labels), 6))) * np.array([1, 10, 0.1, 1, 5, 1]) + 3
    return features.astype(np.float32), labels


def images(labels: list[int], seed: int = 0) -> LabelledImages:
    """Noise whose brightness tells the class."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 60, (len(labels), 3, 28, 28), generator=generator)
    pixels = (noise + 80 * torch.tensor(labels)[:, None, None, None]).to(torch.uint8)
    return LabelledImages(images_NCSS=pixels, labels_N=torch.tensor(labels), preprocessing=half_preprocessing())


def network(num_classes: int = 2) -> Any:
    return random_model("vit_tiny_patch16_224", num_classes=num_classes, **VIT)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_classifier_has_the_probabilities_of_scikit_learns_regression(num_classes: int) -> None:
    features, labels = samples(num_classes)
    found = fit_linear_classifier(features, labels, np.arange(len(labels)))
    assert found.strength in STRENGTHS
    model = make_pipeline(StandardScaler(), LogisticRegression(C=found.strength, max_iter=2000)).fit(features, labels)
    logits = torch.from_numpy(features @ found.weight_KD.T + found.bias_K)
    np.testing.assert_allclose(logits.softmax(dim=1).numpy(), model.predict_proba(features), atol=1e-5)


def test_the_strength_has_the_lowest_cross_validated_loss() -> None:
    """Against scikit-learn's own search over the same folds."""
    from sklearn.model_selection import GridSearchCV

    features, labels = samples(3)
    found = fit_linear_classifier(features, labels, np.arange(len(labels)))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    grid = {"logisticregression__C": list(STRENGTHS)}
    folds = probe_folds(labels, np.arange(len(labels)))
    search = GridSearchCV(model, grid, cv=folds, scoring="neg_log_loss").fit(features, labels)
    assert found.strength == search.best_params_["logisticregression__C"]
    assert found.log_loss == pytest.approx(-search.best_score_, rel=1e-6)


def test_no_group_is_on_both_sides_of_a_fold() -> None:
    labels = np.repeat([0, 1], 20)
    groups = np.concatenate([np.arange(20) // 4, 5 + np.arange(20) // 2])
    folds = probe_folds(labels, groups)
    assert len(folds) == 5
    for train, validation in folds:
        assert not set(groups[train]) & set(groups[validation])
        assert set(labels[train]) == {0, 1}
    assert sorted(np.concatenate([validation for _, validation in folds])) == list(range(40))


def test_a_class_of_one_group_allows_no_folds() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])
    assert probe_folds(labels, np.array([0, 1, 2, 3, 4, 4])) == []
    assert len(probe_folds(labels, np.array([0, 1, 2, 3, 4, 5]))) == 2


class Notes(SilentProgress):
    """Collects the notes of a run."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def test_only_the_classifier_changes_and_it_reads_the_networks_own_features() -> None:
    model, data, config = network(), images([0, 1] * 4), TrainingConfig(image_size=28)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    history = fit_probe(model, data, config, groups_N=np.arange(8), class_names=("dark", "light"))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}
    assert (history.epochs, history.num_steps, history.num_images) == ((), 0, 8 * 8)
    features = probe_features(model, data, config)
    assert features.shape == (8 * 8, 32)
    expected = torch.from_numpy(features[:8]) @ model.head.weight.T + model.head.bias
    with torch.inference_mode():
        assert isinstance(data.images_NCSS, torch.Tensor)
        pixels = data.preprocessing.normalization(data.device)(data.images_NCSS)
        torch.testing.assert_close(model(pixels), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(model(pixels).argmax(dim=1), data.labels_N)


def test_a_class_of_one_image_gets_the_default_strength_and_a_note() -> None:
    model, notes = network(), Notes()
    data = images([0, 0, 0, 1])
    fit_probe(
        model,
        data,
        TrainingConfig(image_size=28),
        groups_N=np.arange(4),
        class_names=("dark", "light"),
        progress=notes,
    )
    assert notes.texts == [
        f"logistic regression: C = {DEFAULT_STRENGTH:g} (the default: a class has too few labelled images or patients "
        "for cross-validation)"
    ]
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_a_class_without_an_image_is_refused() -> None:
    with pytest.raises(TwinbudError, match=r"^--method probe: no image of gray is labelled.* --subset stratified"):
        fit_probe(
            network(3),
            images([0, 2, 0, 2]),
            TrainingConfig(image_size=28),
            groups_N=np.arange(4),
            class_names=("dark", "gray", "light"),
        )


def test_a_request_to_stop_is_followed_before_the_next_batch() -> None:
    model = network()
    before = model.head.weight.clone()
    with pytest.raises(Stopped, match=r"--resume"):
        fit_probe(
            model,
            images([0, 1] * 4),
            TrainingConfig(image_size=28),
            groups_N=np.arange(8),
            class_names=("dark", "light"),
            stop_requested=lambda: True,
        )
    assert torch.equal(model.head.weight, before)
