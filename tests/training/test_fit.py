"""The training loop: determinism, and independent streams."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from helpers.builders import VIT, half_preprocessing, random_model
from twinbud.config.schema import TrainingConfig
from twinbud.core.errors import TwinbudError
from twinbud.data.augment import Normalization, apply_views, draw_views
from twinbud.data.image_store import ImageStore
from twinbud.models.student_pair import StudentPair
from twinbud.training.amp import unfused_attention_in_bf16
from twinbud.training.epoch_loop import plan_steps
from twinbud.training.epoch_plan import batches
from twinbud.training.fit import LabelledImages, fit, objective

SETTINGS: dict[str, Any] = {
    "image_size": 28, "epochs": 2, "batch_size": 4, "temperature": 4.0, "drop_path": 0.1, "precision": "float32",
}  # fmt: skip


def data(count: int = 10) -> LabelledImages:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 28, 28), dtype=torch.uint8, generator=generator)
    return LabelledImages(images_NCSS=images, labels_N=torch.arange(count) % 3, preprocessing=half_preprocessing())


def run(labelled: LabelledImages | None = None, **changes: Any) -> tuple[dict[str, torch.Tensor], Any]:
    student_pair = StudentPair(
        student=random_model("vit_tiny_patch16_224", 0, num_classes=3, drop_path_rate=0.1, **VIT),
        auxiliary=random_model("vit_tiny_patch16_224", 1, num_classes=3, **VIT),
    )
    history = fit(student_pair, labelled or data(), TrainingConfig(**{**SETTINGS, **changes}))
    return student_pair.student.state_dict(), history


def test_the_same_seed_gives_bit_identical_weights() -> None:
    one, history = run()
    torch.manual_seed(99)  # the global state must not matter
    other, again = run()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert [record.loss for record in history.epochs] == [record.loss for record in again.epochs]


def test_attention_written_out_in_bf16_gives_what_the_fused_kernel_gives() -> None:
    """The kernel is timm's choice again afterwards, and the losses agree to what bf16 can tell."""
    model = random_model("vit_tiny_patch16_224", 0, num_classes=3, **VIT)
    images = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    fused = model(images)
    with unfused_attention_in_bf16((model, None), torch.device("cpu"), bf16=True):
        assert not model.blocks[0].attn.fused_attn
        torch.testing.assert_close(model(images), fused, rtol=1e-5, atol=1e-5)
    assert model.blocks[0].attn.fused_attn
    with unfused_attention_in_bf16((model, None), torch.device("cpu"), bf16=False):
        assert model.blocks[0].attn.fused_attn


def test_another_seed_gives_other_weights() -> None:
    one, other = run()[0], run(seed=1)[0]
    assert not torch.equal(one["norm.weight"], other["norm.weight"])


@pytest.mark.parametrize(("word", "temperature"), [("one", 1.0), ("tau", 3.0)])
def test_cross_entropy_is_at_temperature_one_or_follows_equation_4s_letter(word: str, temperature: float) -> None:
    goal = objective(TrainingConfig(**{**SETTINGS, "temperature": 3.0, "ce_temperature": word}), False)
    assert (goal.temperature, goal.ce_temperature) == (3.0, temperature)


def test_mixing_trains_otherwise_from_the_first_epoch_on_and_is_repeatable() -> None:
    plain, mixed, again = run()[1].epochs, run(mixup=0.4)[1].epochs, run(mixup=0.4)[1].epochs
    assert mixed[0].loss_ce != plain[0].loss_ce
    assert [record.loss for record in mixed] == [record.loss for record in again]


def test_soft_targets_are_computed_for_the_mixed_images() -> None:
    """Student and teacher are one network, so that the divergence is 0 if both have the same input."""
    network = random_model("vit_tiny_patch16_224", 0, num_classes=3, **VIT)
    teacher = copy.deepcopy(network).requires_grad_(False)
    config = TrainingConfig(
        **{**SETTINGS, "epochs": 1, "batch_size": 10}, mixup=1.0, cutmix=1.0, distillation="teacher"
    )
    history = fit(StudentPair(student=network, auxiliary=None), data(), config, teacher=teacher)
    assert history.epochs[0].loss_skd == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
@pytest.mark.parametrize("distillation", ["cs-kd", "cs-kd-pair", "tf-kd", "tf-kd-reg"])
def test_mixing_is_refused_where_targets_belong_to_one_image(name: str, distillation: str) -> None:
    line = (
        f"--{name}: '0.4' contradicts --distillation {distillation}, whose targets belong to one image or one class. "
    )
    with pytest.raises(TwinbudError, match=f"^{re.escape(line)}Give --{name} 0\\.$"):
        TrainingConfig(**{**SETTINGS, name: 0.4, "distillation": distillation})


def test_training_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    run()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_epoch_sees_every_sample_once_and_the_short_batch_too() -> None:
    sizes = [len(rows) for rows in batches(10, 4, seed=0, epoch=1)]
    assert sizes == [4, 4, 2]
    for epoch in (1, 2):
        assert sorted(torch.cat(list(batches(10, 4, 0, epoch))).tolist()) == list(range(10))
    assert not torch.equal(torch.cat(list(batches(10, 4, 0, 1))), torch.cat(list(batches(10, 4, 0, 2))))


def test_fewer_images_than_a_batch_still_take_steps() -> None:
    plan = plan_steps(TrainingConfig(**{**SETTINGS, "batch_size": 64, "min_steps": 7}), 10)
    assert (plan.epochs, plan.steps_per_epoch, plan.num_steps) == (7, 1, 7)


def test_history_counts_images_and_steps_and_tests_only_when_asked() -> None:
    _, history = run()
    assert history.num_steps == 6
    assert history.num_images == 20
    assert [record.test_accuracy for record in history.epochs] == [None, None]
    first = history.epochs[0]
    assert first.loss == pytest.approx(0.6 * first.loss_ce + 0.4 * 16 * first.loss_skd, rel=1e-5)


def test_a_view_depends_on_seed_epoch_and_sample_alone() -> None:
    few, many = (draw_views(0, 3, count, crop_scale=0.8, flip=0.5) for count in (4, 40))
    assert torch.equal(few.scale_N2, many.scale_N2[:4])
    assert torch.equal(few.center_N2, many.center_N2[:4])
    assert torch.equal(few.flip_N, many.flip_N[:4])
    assert not torch.equal(few.scale_N2, draw_views(0, 4, 4, crop_scale=0.8, flip=0.5).scale_N2)
    assert not torch.equal(few.scale_N2, draw_views(1, 3, 4, crop_scale=0.8, flip=0.5).scale_N2)


def test_crops_have_the_area_and_ratio_of_random_resized_crop_and_stay_inside() -> None:
    views = draw_views(0, 1, 5000, crop_scale=0.8, flip=0.5)
    area, ratio = views.scale_N2.prod(dim=1), views.scale_N2[:, 0] / views.scale_N2[:, 1]
    assert float(area.min()) >= 0.8 - 1e-6
    assert float(area.max()) <= 1
    assert float(ratio.min()) >= 3 / 4 - 1e-6
    assert float(ratio.max()) <= 4 / 3 + 1e-6
    assert bool((views.center_N2.abs() + views.scale_N2 <= 1 + 1e-6).all())
    assert float(views.flip_N.float().mean()) == pytest.approx(0.5, abs=0.03)


def test_the_whole_image_comes_back_as_it_was_and_its_mirror_mirrored() -> None:
    images = data(2).images_NCSS
    assert isinstance(images, torch.Tensor)
    views = draw_views(0, 1, 2, crop_scale=1.0, flip=0.0)
    views.scale_N2.fill_(1.0)
    views.center_N2.zero_()
    torch.testing.assert_close(apply_views(images, views), images.float(), rtol=0, atol=0.05)
    views.flip_N.fill_(True)
    torch.testing.assert_close(apply_views(images, views), images.float().flip(-1), rtol=0, atol=0.05)


def test_a_crop_is_what_pillow_cuts_and_scales() -> None:
    from PIL import Image

    smooth = np.add.outer(np.linspace(0, 200, 32), np.linspace(0, 50, 32)).astype(np.uint8)
    images = torch.from_numpy(np.repeat(smooth[None, None], 3, axis=1).copy())
    views = draw_views(0, 1, 1, crop_scale=1.0, flip=0.0)
    views.scale_N2.fill_(0.5)
    views.center_N2.copy_(torch.tensor([[0.25, -0.25]]))  # columns 12..28, rows 4..20
    expected = Image.fromarray(smooth).resize((32, 32), Image.Resampling.BICUBIC, box=(12, 4, 28, 20))
    seen = apply_views(images, views)[0, 0].numpy()
    assert np.abs(seen - np.asarray(expected, dtype=np.float32))[2:-2, 2:-2].max() <= 2


def test_normalization_is_the_teachers() -> None:
    pixels = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    seen = Normalization.on(torch.device("cpu"), (0.5, 0.4, 0.3), (0.5, 0.2, 0.7))(pixels)
    torch.testing.assert_close(seen[0, :, 0, 0], torch.tensor([1.0, 3.0, 1.0]))


def test_images_that_are_streamed_train_the_same_network() -> None:
    """Bit for bit: kept as one channel or three, on the device or fetched batch by batch."""
    gray = torch.randint(0, 256, (10, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = ImageStore(image_size=28, digests=("",) * 10, pixels=tuple(gray)).rows(range(10))
    sources = (gray, gray.expand(-1, 3, -1, -1).contiguous(), rows)
    one, *others = [run(replace(data(), images_NCSS=source))[0] for source in sources]
    for other in others:
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
