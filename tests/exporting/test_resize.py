"""The resize of an exported file is twinbud's, bit for bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from twinbud.data.preprocessing import resize
from twinbud.exporting import resize as graph
from twinbud.exporting.resize import DOMAIN, resize_functions, resize_passes, resizes_vertically_first

KINDS = ("noise", "black and white", "smooth")


def session(size: int, opset: int = 20) -> Any:
    """The resize alone."""
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, shape)
        for name, shape in (("image", ["N", "H", "W", 3]), ("pixels", ["N", 3, size, size]))
    ]
    first, *others = resize_functions(size, opset)
    node = helper.make_node(first.name, ["image"], ["pixels"], domain=DOMAIN)
    model = helper.make_model(
        helper.make_graph([node], "resize", ends[:1], ends[1:]),
        functions=[first, *others],
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def answer(open_file: Any, *images: np.ndarray) -> np.ndarray:
    """(N, S, S, 3) uint8."""
    return open_file.run(None, {"image": np.stack(images)})[0].transpose(0, 2, 3, 1)


def image_of(kind: str, height: int, width: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if kind == "noise":
        return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == "smooth":
        return resize(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8), max(height, width))[:height, :width]
    return generator.choice(np.array([0, 255], np.uint8), (height, width, 3))  # overshoots and clips most


def shapes(seed: int, count: int) -> list[tuple[int, int]]:
    """Heights and widths from 1 to 256, equally many small and large ones."""
    draw = random.Random(seed)
    return [(int(2 ** draw.uniform(0, 8)), int(2 ** draw.uniform(0, 8))) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 28, 56])
def test_an_image_of_any_size_becomes_what_pillow_makes_of_it(size: int, kind: str) -> None:
    open_file = session(size)
    fixed = [(size, size), (1, 1), (1, 200), (200, 1), (size, 99), (99, size), (2 * size, 2 * size), (size + 1, 3)]
    for seed, (height, width) in enumerate([*fixed, *shapes(size, 40)]):
        image = image_of(kind, height, width, seed)
        assert np.array_equal(answer(open_file, image)[0], resize(image, size)), (height, width)


def test_each_image_of_a_batch_is_resized_by_itself() -> None:
    images = [image_of("noise", 50, 37, seed) for seed in range(3)]
    found = answer(session(28), *images)
    assert all(np.array_equal(one, resize(image, 28)) for one, image in zip(found, images, strict=True))


@pytest.mark.parametrize("opset", [18, 23])
def test_the_oldest_and_the_newest_opset_give_the_same_pixels(opset: int) -> None:
    image = image_of("noise", 77, 20, 0)
    assert np.array_equal(answer(session(28, opset), image)[0], resize(image, 28))


@pytest.mark.parametrize("is_new", [False, True])
def test_the_graph_makes_the_passes_in_the_order_of_the_installed_pillow(
    is_new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 13 resizes tall images vertically first; before, only those more than 100 times as tall as wide."""
    monkeypatch.setattr(graph, "_follows_pillow_13", lambda: is_new)
    open_file = session(28)
    orders = set()
    for seed, (height, width) in enumerate([(201, 2), (200, 2), (250, 1), (60, 5), (40, 30), (29, 28), (20, 3)]):
        image = image_of("black and white", height, width, seed)
        vertical_first = resizes_vertically_first(height, width, 28)
        orders.add(vertical_first)
        expected = resize_passes(image, 28, vertical_first=vertical_first)
        assert np.array_equal(answer(open_file, image)[0], expected), (height, width)
    assert orders == {False, True}
