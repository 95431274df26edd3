"""The self-distillation variants: what they remember, what they ask, and what is refused."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from helpers.builders import half_preprocessing
from helpers.soft_targets import (
    EPOCHS,
    LABELS,
    NOBODY,
    NUM_CLASSES,
    NUM_SAMPLES,
    VARIANTS,
    WITHOUT_AUXILIARY,
    Lookup,
    frozen_teacher,
    lookups,
    step_of,
    take,
)
from twinbud.config.schema import TEACHER_TARGETS, Distillation, TrainingConfig
from twinbud.core.errors import TwinbudError
from twinbud.data.augment import apply_views, draw_views
from twinbud.models.student_pair import StudentPair
from twinbud.training.fit import LabelledImages, fit
from twinbud.training.same_class_pairs import draw_same_class_pairs
from twinbud.training.soft_targets import open_soft_targets
from twinbud.training.train_step import TrainingStep


def test_tf_kd_never_asks_the_auxiliary_after_the_first_epoch() -> None:
    student_pair = lookups("tf-kd")
    asked: list[int] = []
    assert student_pair.auxiliary is not None
    student_pair.auxiliary.register_forward_hook(lambda module, images, said: asked.append(len(said)))
    step = step_of(student_pair, "tf-kd")
    for rows in (rows for epoch in EPOCHS for rows in epoch):
        take(step, rows)
    assert asked == [3, 2]


@pytest.mark.parametrize("distillation", VARIANTS)
def test_the_auxiliary_is_asked_before_the_student(distillation: Distillation) -> None:
    """So that nothing of S is held meanwhile; and S′ keeps no activations, for nobody asks it for a gradient."""
    student_pair, asked = lookups(distillation), []
    for name, network in (("S", student_pair.student), ("S′", student_pair.auxiliary)):
        if network is not None:
            network.register_forward_hook(lambda m, i, said, name=name: asked.append((name, said.requires_grad)))
    take(step_of(student_pair, distillation), [0, 1, 2])
    expected = [("S", True)]
    assert asked == (expected if distillation in WITHOUT_AUXILIARY else [("S′", False), *expected])


@pytest.mark.parametrize("distillation", VARIANTS)
@pytest.mark.parametrize("frozen", [False, True])
def test_the_auxiliary_follows_unless_it_is_frozen(distillation: Distillation, frozen: bool) -> None:
    student_pair = replace(lookups(distillation), frozen=frozen or distillation == "tf-kd-self")
    if student_pair.auxiliary is None:
        return
    before = student_pair.auxiliary.logits.clone()
    take(step_of(student_pair, distillation), [0, 1, 2])
    expected = before if student_pair.frozen else 0.9 * before + 0.1 * student_pair.student.logits
    torch.testing.assert_close(student_pair.auxiliary.logits, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("distillation", "where"),
    [(variant, where) for variant in VARIANTS for where in ("student", "auxiliary") if (variant, where) not in NOBODY],
)
@pytest.mark.parametrize("deferred", [False, True], ids=["known at once", "read later"])
def test_a_step_that_is_not_finite_leaves_every_memory_as_it_was(
    distillation: Distillation, where: str, deferred: bool
) -> None:
    student_pair = lookups(distillation)
    step = step_of(student_pair, distillation)
    step.optimizer.deferred = deferred
    take(step, [0, 1, 2])
    getattr(student_pair, where).logits.data[[0, 3]] = math.nan  # a sample and its partner
    before = {name: tensor.clone() for name, tensor in step.tensors().items()}

    def go_on() -> None:
        take(step, [3, 4])
        for rows in EPOCHS[1] if deferred else ():  # on a GPU, more steps are taken before the flag is read
            take(step, rows)
        step.check()

    with pytest.raises(TwinbudError, match=r"^step 2 \(epoch 1, batch 2\): the loss is not finite \(loss nan"):
        go_on()
    for name, tensor in step.tensors().items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), name


@pytest.mark.parametrize("distillation", VARIANTS)
def test_what_is_remembered_is_never_of_low_precision(distillation: Distillation) -> None:
    student_pair = lookups(distillation)
    for network in (student_pair.student, student_pair.auxiliary):
        if network is not None:
            network.float()
    step = step_of(student_pair, distillation, bf16=True)
    if isinstance(teacher := getattr(step.targets, "teacher", None), Lookup):
        teacher.float()
    for rows in EPOCHS[0]:
        take(step, rows)
    assert all(tensor.dtype == torch.float32 for tensor in step.tensors().values())


def test_same_class_pairs_are_of_one_class_and_have_views_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainingConfig(
        image_size=4, epochs=2, batch_size=3, temperature=4.0, drop_path=0.0, distillation="cs-kd-pair", seed=5
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (NUM_SAMPLES, 3, 4, 4), dtype=torch.uint8, generator=generator)
    data = LabelledImages(images_NCSS=images, labels_N=LABELS, preprocessing=half_preprocessing())
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, NUM_CLASSES))
    network.num_classes = NUM_CLASSES  # pyright: ignore[reportArgumentType]
    batches: list[tuple[torch.Tensor, torch.Tensor, None]] = []
    taken = TrainingStep.__call__

    def spy(self: TrainingStep, images: torch.Tensor, labels: torch.Tensor, rate: float, *others: Any) -> Any:
        batches.append(others)
        return taken(self, images, labels, rate, *others)

    monkeypatch.setattr(TrainingStep, "__call__", spy)
    fit(StudentPair(student=network, auxiliary=network), data, config)
    assert len(batches) == 4
    normalize = data.preprocessing.normalization(torch.device("cpu"))
    for number, (rows, partners, _) in enumerate(batches):
        epoch = 1 + number // 2
        chosen = draw_same_class_pairs(LABELS, 5, epoch)[rows]
        views = draw_views(5, epoch, NUM_SAMPLES, crop_scale=config.crop_scale, flip=config.flip)
        assert torch.equal(partners, normalize(apply_views(images[chosen], views[chosen])))


@pytest.mark.parametrize(
    "distillation", [variant for variant in VARIANTS if variant not in ("skd", *WITHOUT_AUXILIARY)]
)
def test_a_variant_that_needs_an_auxiliary_is_refused_without_one(distillation: Distillation) -> None:
    alone = StudentPair(student=lookups("skd").student, auxiliary=None)
    with pytest.raises(TwinbudError, match=rf"^--distillation {re.escape(distillation)}: the student pair has no aux"):
        open_soft_targets(distillation, alone, temperature=4.0)


def test_tf_kd_self_is_refused_with_an_auxiliary_that_nobody_trained() -> None:
    with pytest.raises(
        TwinbudError, match=r"trained before and is frozen\. Train with twinbud\.training\.two_phase\.fit_in_two_"
    ):
        open_soft_targets("tf-kd-self", lookups("skd"), temperature=4.0)


@pytest.mark.parametrize("distillation", TEACHER_TARGETS)
def test_a_variant_that_needs_a_teacher_is_refused_without_one(distillation: Distillation) -> None:
    with pytest.raises(TwinbudError, match=rf"^--distillation {re.escape(distillation)}: there is no teacher\."):
        open_soft_targets(distillation, lookups(distillation), temperature=4.0)


@pytest.mark.parametrize("distillation", TEACHER_TARGETS)
def test_the_teacher_neither_changes_nor_enters_a_checkpoint(distillation: Distillation) -> None:
    step, teacher = step_of(lookups(distillation), distillation), frozen_teacher(distillation)
    for rows in EPOCHS[0]:
        take(step, rows)
    (kept,) = (m for m in vars(step.targets).values() if isinstance(m, Lookup) and m is not step.student_pair.auxiliary)
    assert teacher is not None
    assert torch.equal(kept.logits, teacher.logits)
    assert kept.logits.grad is None
    assert {name.partition(".")[0] for name in step.tensors()} <= {"student", "auxiliary", "exp_avg", "exp_avg_sq"}
