"""Few images, short batches, and images of odd kinds and shapes: a right result, never zero steps."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import twinbud
from helpers.builders import CONVNEXT, save_images, save_teacher
from helpers.command import refusal, train, trained


def steps_and_losses(run: Path) -> list[tuple[int, float]]:
    with (run / "history.csv").open(newline="") as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def teachers(shared_teacher: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    convnext = tmp_path_factory.mktemp("teacher") / "convnext"
    return {"vit": shared_teacher, "convnext": save_teacher(convnext, "convnext_atto", conv_mlp=False, **CONVNEXT)}


BATCHES = {
    "fewer images than a batch": (5, 64, 1),
    "as many images as a batch": (5, 8, 1),
    "batches of one": (3, 1, 4),
    "one batch of two": (2, 8, 1),
    "a last batch of one": (4, 5, 2),
}
"""Images a class, batch size, and the steps of an epoch; of each class a fifth, at least one, is held out."""


@pytest.mark.parametrize("family", ["vit", "convnext"])
@pytest.mark.parametrize(("count", "size", "steps"), BATCHES.values(), ids=BATCHES)
def test_every_image_is_trained_on_whatever_the_batches(
    family: str, count: int, size: int, steps: int, teachers: dict[str, str], tmp_path: Path
) -> None:
    """ViT and ConvNeXt have layer norm only, so that a batch of one is like any other."""
    data = save_images(tmp_path / "data", {"dark": count, "light": count})
    words = ("--batch-size", size, "--epochs", 3, *(("--image-size", 32) if family == "convnext" else ()))
    run = trained(data, teachers[family], tmp_path / "run", *words)
    history = steps_and_losses(run)
    assert [step for step, _ in history] == [steps, 2 * steps, 3 * steps]
    assert all(np.isfinite(loss) for _, loss in history)


def test_batches_of_one_train_a_network_with_batch_norm(tmp_path: Path) -> None:
    """Its last maps have one position, of which torch takes no variance; see ``training.batch_norm``."""
    data = save_images(tmp_path / "data", {"dark": 4, "light": 4})
    teacher = save_teacher(tmp_path / "teacher", "resnet26", channels=[8, 8, 8, 8])
    run = trained(data, teacher, tmp_path / "run", "--image-size", 32, "--batch-size", 1)
    assert all(np.isfinite(loss) for _, loss in steps_and_losses(run))


def test_a_convnext_with_batch_norm_is_refused_by_name(tmp_path: Path) -> None:
    data = save_images(tmp_path / "data", {"dark": 4, "light": 4})
    teacher = save_teacher(tmp_path / "other", "convnext_atto", conv_mlp=True, norm_layer="batchnorm2d", **CONVNEXT)
    line = refusal(train(data, teacher, tmp_path / "run", "--image-size", 64, "--batch-size", 1))
    assert "ConvNeXt has tensor 'stem.1.running_mean', for which no width is defined" in line
    assert not (tmp_path / "run").exists()


def picture(channels: int = 3) -> np.ndarray:
    """Smooth colors from 0 to 255, with both in every channel."""
    rows, columns = np.mgrid[0:30, 0:40]
    layers = [(rows * 5 + columns * k) % 256 for k in (2, 3, 5)][:channels]
    image_store = np.stack(layers, axis=2).astype(np.uint8)
    image_store[0, 0], image_store[-1, -1] = 0, 255
    return image_store


def plain(folder: Path, image_store: np.ndarray) -> Path:
    Image.fromarray(image_store).save(folder / "plain.png")
    return folder / "plain.png"


def sixteen_bit(folder: Path) -> tuple[Path, Path]:
    gray = picture(1)[:, :, 0]
    Image.fromarray(gray.astype(np.uint16) * 100 + 7).save(folder / "odd.png")
    return folder / "odd.png", plain(folder, gray)


def cmyk(folder: Path) -> tuple[Path, Path]:
    image = Image.fromarray(picture()).convert("CMYK")
    image.save(folder / "odd.tiff")
    return folder / "odd.tiff", plain(folder, np.asarray(image.convert("RGB")))


def cmyk_jpeg(folder: Path) -> tuple[Path, Path]:
    Image.fromarray(picture()).convert("CMYK").save(folder / "odd.jpg", quality=95)
    with Image.open(folder / "odd.jpg") as image:
        return folder / "odd.jpg", plain(folder, np.asarray(image.convert("RGB")))


def palette(folder: Path) -> tuple[Path, Path]:
    image = Image.fromarray(picture()).quantize(8)
    image.save(folder / "odd.png")
    return folder / "odd.png", plain(folder, np.asarray(image.convert("RGB")))


def alpha(folder: Path) -> tuple[Path, Path]:
    image_store = picture()
    opaque = np.full((*image_store.shape[:2], 1), 255, np.uint8)
    opaque[:10] = 0  # becomes black
    Image.fromarray(np.concatenate([image_store, opaque], axis=2)).save(folder / "odd.png")
    return folder / "odd.png", plain(folder, image_store * (opaque > 0))


def turned(folder: Path) -> tuple[Path, Path]:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(np.rot90(picture(), 1).copy()).save(folder / "odd.png", exif=exif)
    return folder / "odd.png", plain(folder, picture())


def one_pixel(folder: Path) -> tuple[Path, Path]:
    Image.new("RGB", (1, 1), (200, 30, 90)).save(folder / "odd.png")
    Image.new("RGB", (77, 50), (200, 30, 90)).save(folder / "plain.png")
    return folder / "odd.png", folder / "plain.png"


def very_wide(folder: Path) -> tuple[Path, Path]:
    columns = np.linspace(0, 255, 4000).astype(np.uint8)
    wide = Image.fromarray(np.stack([columns, columns[::-1]])).convert("RGB")
    wide.save(folder / "odd.png")
    return folder / "odd.png", plain(folder, np.asarray(wide.resize((28, 28), Image.Resampling.BICUBIC)))


def very_tall(folder: Path) -> tuple[Path, Path]:
    file, small = very_wide(folder)
    for path in (file, small):
        with Image.open(path) as image:
            image.transpose(Image.Transpose.TRANSPOSE).save(path)
    return file, small


KINDS: tuple[Callable[[Path], tuple[Path, Path]], ...] = (
    sixteen_bit, cmyk, cmyk_jpeg, palette, alpha, turned, one_pixel, very_wide, very_tall,
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=[kind.__name__ for kind in KINDS])
def test_an_odd_image_is_predicted_like_the_plain_one_that_it_shows(
    kind: Callable[[Path], tuple[Path, Path]], shared_run: Path, tmp_path: Path
) -> None:
    odd, same = kind(tmp_path)
    predictions = twinbud.predict(shared_run, [odd, same])
    np.testing.assert_allclose(predictions.probabilities[0], predictions.probabilities[1], rtol=0, atol=1e-6)
    other = tmp_path / "other.png"
    Image.effect_mandelbrot((40, 30), (-2, -1.5, 1, 1.5), 100).save(other)
    assert np.abs(twinbud.predict(shared_run, [other]).probabilities - predictions.probabilities[0]).max() > 1e-4


def test_odd_images_are_trained_on_together(shared_teacher: str, tmp_path: Path) -> None:
    data = save_images(tmp_path / "data", {"odd": 2, "plain": 4})
    for kind in KINDS:
        (tmp_path / kind.__name__).mkdir()
        file, _ = kind(tmp_path / kind.__name__)
        file.rename(data / "odd" / f"{kind.__name__}{file.suffix}")
    run = trained(data, shared_teacher, tmp_path / "run")
    with (run / "split.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6 + len(KINDS)
    ((steps, loss),) = steps_and_losses(run)
    assert steps == 2
    assert np.isfinite(loss)
