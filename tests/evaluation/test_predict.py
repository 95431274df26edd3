"""Logits are those of the network in evaluation mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from helpers.builders import VIT, half_preprocessing, random_model
from twinbud.evaluation.predict import predict_logits

IMAGES = torch.randint(0, 256, (6, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PREPROCESSING = half_preprocessing()


def test_dropout_and_drop_path_are_off_and_the_mode_is_restored() -> None:
    rates: dict[str, Any] = {"drop_rate": 0.5, "drop_path_rate": 0.9}
    model = random_model("vit_tiny_patch16_224", num_classes=3, **VIT, **rates).eval()
    expected = predict_logits(model, IMAGES, preprocessing=PREPROCESSING)
    assert expected.dtype == np.float32
    assert not model.training
    model.train()
    np.testing.assert_array_equal(predict_logits(model, IMAGES, preprocessing=PREPROCESSING), expected)
    assert model.training
    np.testing.assert_allclose(
        predict_logits(model, IMAGES, preprocessing=PREPROCESSING, batch_size=4), expected, rtol=0, atol=1e-6
    )
