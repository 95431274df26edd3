"""Which views least squares uses: as many as fit, the images as they are first, each on one side."""

from __future__ import annotations

import gc
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.builders import half_preprocessing, save_vit_teacher
from twinbud.config.recovery import RecoveryConfig
from twinbud.config.schema import TrainingConfig
from twinbud.models.selection_io import select
from twinbud.models.student_pair import build_student_pair
from twinbud.models.teacher import read_teacher_info
from twinbud.recovery import least_squares
from twinbud.recovery import refit_batches as module
from twinbud.recovery.refit_batches import RefitBatchPlan, plan_refit_batches, refit_batches
from twinbud.recovery.stage import recover
from twinbud.training.unlabelled import UnlabelledImages

PACE = TrainingConfig(image_size=28, crop_scale=0.5)
NUMBERS = 17 * 32
"""Of a small teacher's first stream: 4 × 4 patches and a class token of 32 channels."""


def planned(num_images: int, *, fitting: int, num_views: int = 9) -> list[RefitBatchPlan]:
    memory = module._BYTES_PER_ELEMENT * NUMBERS * fitting / 2**30
    config = RecoveryConfig(recover="labelled", recover_views=num_views, recover_memory=memory)
    return list(plan_refit_batches(config, PACE, num_images, NUMBERS))


@pytest.mark.parametrize(("fitting", "seen"), [(1000, 90), (25, 24), (7, 7), (1, 5)])
def test_no_more_views_are_looked_at_than_there_is_room_for_in_whole_batches_and_five_at_the_least(
    fitting: int, seen: int
) -> None:
    plans = planned(10, fitting=fitting)
    assert sum(len(plan.rows) for plan in plans) == seen
    assert {plan.is_held_out for plan in plans} == {False, True}


def test_every_image_is_looked_at_as_it_is_before_any_is_augmented() -> None:
    plans = planned(330, fitting=500)
    plain = torch.cat([plan.rows for plan in plans if plan.view == 0])
    assert sorted(plain.tolist()) == list(range(330))
    assert [plan.view for plan in plans] == sorted(plan.view for plan in plans)


@pytest.mark.parametrize("num_images", [10, 37, 330])
def test_all_views_of_an_image_are_on_one_side_and_a_fifth_is_held_out(num_images: int) -> None:
    plans = planned(num_images, fitting=10_000)
    sides = [{int(row) for plan in plans if plan.is_held_out == side for row in plan.rows} for side in (False, True)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == num_images
    assert 0.1 < len(sides[1]) / num_images < 0.35


def test_later_views_are_augmented_and_the_first_is_not() -> None:
    pixels = torch.randint(0, 256, (10, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = UnlabelledImages(images_NCSS=pixels, preprocessing=half_preprocessing(), device=torch.device("cpu"))
    plans = planned(10, fitting=1000, num_views=3)
    pairs = zip(plans, refit_batches(plans, images, PACE), strict=True)
    seen = {
        (plan.view, int(row)): image for plan, (batch, _) in pairs for row, image in zip(plan.rows, batch, strict=True)
    }
    for row in range(10):
        assert torch.allclose(seen[0, row], (pixels[row] / 255 - 0.5) / 0.25, atol=1e-6)
        assert not torch.allclose(seen[1, row], seen[0, row])
        assert not torch.allclose(seen[2, row], seen[1, row])


def test_later_views_are_mixed_within_their_batch_where_training_mixes_them() -> None:
    """Each pixel is a blend of the two constant images, so that its value gives the share of the other one."""
    pixels = torch.arange(0, 100, 10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 28, 28)
    images = UnlabelledImages(images_NCSS=pixels, preprocessing=half_preprocessing(), device=torch.device("cpu"))
    plans = planned(10, fitting=1000, num_views=2)
    mixed = refit_batches(plans, images, replace(PACE, mixup=1.0))
    plain = refit_batches(plans, images, PACE)
    num_mixed = 0
    for plan, (mixed_BCSS, _), (plain_BCSS, _) in zip(plans, mixed, plain, strict=True):
        if plan.view:
            low, high = torch.stack([plain_BCSS, plain_BCSS.roll(1, dims=0)]).aminmax(dim=0)
            assert ((low - 1e-5 <= mixed_BCSS) & (mixed_BCSS <= high + 1e-5)).all()
            num_mixed += int((mixed_BCSS - plain_BCSS).abs().amax(dim=(1, 2, 3)).gt(1e-3).sum())
        else:
            assert torch.equal(mixed_BCSS, plain_BCSS)
    assert num_mixed > 5


def live_bytes() -> int:
    """Bytes of all tensors; those that an earlier compilation left behind are of a subclass and hold no memory."""
    tensors = [found for found in gc.get_objects() if type(found) in (torch.Tensor, torch.nn.Parameter)]
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storages.values())


def test_least_squares_hold_as_much_as_they_say(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, when the last batch has been asked about: 16 bytes for each number of the teacher's first stream."""
    gc.collect()  # tensors of earlier tests would be freed, and counted, in between
    teacher_info = read_teacher_info(save_vit_teacher(tmp_path / "vit"))
    selection = select(teacher_info)
    student_pair = build_student_pair(selection, image_size=28, num_classes=3, auxiliary="none")
    pixels = torch.zeros(50, 3, 28, 28, dtype=torch.uint8)
    images = UnlabelledImages(images_NCSS=pixels, preprocessing=half_preprocessing(), device=torch.device("cpu"))
    asking, calls, held, before = least_squares._teacher_targets, itertools.count(1), [], live_bytes()

    def watched(*words: Any) -> Any:
        answer = asking(*words)
        if next(calls) % 100 == 0:  # the last of 100 batches; each look takes long
            held.append(live_bytes() - before)
        return answer

    monkeypatch.setattr(least_squares, "_teacher_targets", watched)
    config = RecoveryConfig(recover="labelled", recover_views=20)
    found = recover(student_pair, selection, teacher_info, images, config, PACE)
    assert found.num_views == 1000
    assert 14 < max(held) / (1000 * NUMBERS) < 18
