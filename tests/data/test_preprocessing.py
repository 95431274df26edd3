"""One object holds the preprocessing, and timm's own transform agrees with it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform  # pyright: ignore[reportPrivateImportUsage]

from twinbud.data.preprocessing import Preprocessing, resize

PREPROCESSING = Preprocessing(image_size=28, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def test_json_and_timm_spelling_come_back_unchanged() -> None:
    assert Preprocessing.from_json(json.loads(json.dumps(PREPROCESSING.to_json()))) == PREPROCESSING
    assert Preprocessing.from_timm(json.loads(json.dumps(PREPROCESSING.to_timm()))) == PREPROCESSING


def test_timms_transform_gives_the_same_input() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    config: dict[str, Any] = PREPROCESSING.to_timm()
    transform: Any = create_transform(**{**config, "input_size": tuple(config["input_size"])})
    pixels = torch.from_numpy(resize(image, 28).transpose(2, 0, 1)[None].copy())
    ours = PREPROCESSING.normalization(torch.device("cpu"))(pixels)[0]
    torch.testing.assert_close(ours, transform(Image.fromarray(image)))


@pytest.mark.parametrize(
    "change",
    [
        {"input_size": [3, 28, 32]},
        {"input_size": [1, 28, 28]},
        {"input_size": [3, 0, 0]},
        {"input_size": [3, True, True]},
        {"crop_pct": 0.9},
        {"crop_mode": "center"},
        {"interpolation": "bilinear"},
        {"mean": [0.5]},
        {"mean": [0.5, 0.5, float("nan")]},
        {"std": [0.2, 0, 0.2]},
    ],
)
def test_a_timm_configuration_of_another_input_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))}|image_size"):
        Preprocessing.from_timm(PREPROCESSING.to_timm() | change)
