"""The student's classifier, fitted to the logits of a teacher that knows the classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.builders import VIT, random_model
from helpers.recovering import batches, beside, image_size, refit_batches
from twinbud.core.errors import TwinbudError
from twinbud.recovery.classifier import refit_classifier
from twinbud.recovery.least_squares import RefitBatch


def many_batches(size: int) -> list[RefitBatch]:
    """More views than the small networks have features; every fifth batch is held out."""
    return [RefitBatch(batch, is_held_out=number % 5 == 0) for number, batch in enumerate(batches(size, count=10))]


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "convnext_tiny"])
def test_a_teacher_whose_logits_are_linear_in_the_features_is_reproduced(architecture: str) -> None:
    arguments: dict[str, Any] = VIT if "vit" in architecture else {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    size = 28 if "vit" in architecture else 64
    teacher, student = (random_model(architecture, 0, num_classes=3, **arguments) for _ in range(2))
    nn.init.normal_(student.get_classifier().weight)
    fit = refit_classifier(student, teacher, many_batches(size))
    (unseen,) = batches(size, seed=1, count=1)
    with torch.no_grad():
        assert torch.allclose(student(unseen), teacher(unseen), atol=1e-3)
    assert fit.before < 1e-6, "the mean logits explain nothing"
    assert fit.after == pytest.approx(1, abs=1e-4)


def test_only_the_classifier_changes_and_it_is_the_one_of_ridge_regression() -> None:
    """Against NumPy's least squares: the views above rows of the prior, the mean logits."""
    pair = beside("pooled vit")
    before = {name: tensor.clone() for name, tensor in pair.student.state_dict().items()}
    pair.teacher.reset_classifier(2)
    nn.init.normal_(pair.teacher.head.weight, generator=torch.Generator().manual_seed(0))
    fit = refit_classifier(pair.student, pair.teacher, many_batches(28))
    changed = {name for name, tensor in pair.student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}
    assert fit.before < fit.after < 1
    images = torch.cat([batch.images_BCSS for batch in many_batches(28)])
    with torch.no_grad():
        features = pair.student.forward_head(pair.student.forward_features(images), pre_logits=True).double().numpy()
        logits, found = pair.teacher(images).double().numpy(), pair.student(images).double().numpy()
    rows = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    damping = np.sqrt(fit.ridge * np.square(rows).sum(axis=0).mean()) * np.eye(rows.shape[1])
    prior = np.concatenate([np.zeros((features.shape[1], 2)), logits.mean(axis=0, keepdims=True)])
    weights = np.linalg.lstsq(np.concatenate([rows, damping]), np.concatenate([logits, damping @ prior]), rcond=None)[0]
    assert found == pytest.approx(rows @ weights, abs=1e-3 * logits.std())


def test_a_network_with_two_classifiers_is_refused() -> None:
    pair = beside("distilled vit")
    with pytest.raises(TwinbudError, match="--recover-classifier: 'on' fits one linear classifier"):
        refit_classifier(pair.student, pair.teacher, refit_batches(image_size("vit")))
