"""The self-distillation variants: their losses against a plain float64 reference, their memories, and what they ask."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import nn

from helpers.builders import half_preprocessing
from twinbud.config.schema import TEACHER_TARGETS, Distillation, TrainingConfig
from twinbud.core.errors import TwinbudError
from twinbud.data.augment import apply_views, draw_views
from twinbud.models.student_pair import StudentPair
from twinbud.training.fit import LabelledImages, fit
from twinbud.training.same_class_pairs import draw_same_class_pairs
from twinbud.training.soft_targets import open_soft_targets
from twinbud.training.target_formulas import mean_target_logits, update_similarity, virtual_teacher
from twinbud.training.train_step import Objective, TrainingStep

VARIANTS: tuple[Distillation, ...] = get_args(Distillation)
NUM_SAMPLES, NUM_CLASSES = 5, 3
LABELS = torch.tensor([0, 2, 2, 0, 1])
EPOCHS = [[[0, 1, 2], [3, 4]], [[4, 2, 0], [1, 3]], [[3, 0, 1], [2, 4]]]
"""Sample numbers of two batches an epoch."""
PARTNERS = torch.tensor([3, 2, 1, 0, 4])
WITHOUT_AUXILIARY = ("tf-kd-reg", "teacher")
NOBODY = tuple((variant, "auxiliary") for variant in WITHOUT_AUXILIARY)
"""The variants without an auxiliary."""
OBJECTIVE = Objective(alpha=0.6, beta=0.9, temperature=3.0, ce_temperature=1.0, clip_norm=None, bf16=False)


class Lookup(nn.Module):
    """A network whose logits are its parameters: an image of one pixel says which row."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.num_classes = logits.shape[1]
        self.logits = nn.Parameter(logits.clone())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[images[:, 0, 0, 0].long()]


def lookups(distillation: Distillation) -> StudentPair:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, NUM_SAMPLES, NUM_CLASSES, generator=generator, dtype=torch.float64) * 3
    auxiliary = None if distillation in WITHOUT_AUXILIARY else Lookup(logits[1]).requires_grad_(False)
    return StudentPair(student=Lookup(logits[0]), auxiliary=auxiliary, frozen=distillation == "tf-kd-self")


def frozen_teacher(distillation: Distillation) -> Lookup | None:
    if distillation not in TEACHER_TARGETS:
        return None
    logits = torch.randn(NUM_SAMPLES, NUM_CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Lookup(3 * logits).requires_grad_(False)


def step_of(student_pair: StudentPair, distillation: Distillation, **changes: Any) -> TrainingStep:
    objective = replace(OBJECTIVE, distillation=distillation, **changes)
    return TrainingStep(
        student_pair,
        objective,
        weight_decay=0.05,
        steps_per_epoch=2,
        num_samples=NUM_SAMPLES,
        teacher=frozen_teacher(distillation),
    )


def pixels(rows: torch.Tensor) -> torch.Tensor:
    return rows.double().view(-1, 1, 1, 1)


def take(step: TrainingStep, rows: list[int], learning_rate: float = 0.1) -> float:
    numbers = torch.tensor(rows)
    result = step(pixels(numbers), LABELS[numbers], learning_rate, numbers, pixels(PARTNERS[numbers]))
    return result.losses.total.item()


class Reference:
    """The table of docs/method.md in plain Python."""

    def __init__(self, distillation: Distillation) -> None:
        self.distillation = distillation
        self.similarity = [[float(i == j) for j in range(NUM_CLASSES)] for i in range(NUM_CLASSES)]
        self.memory: dict[int, list[float]] = {}
        teacher = frozen_teacher(distillation)
        self.teacher: list[list[float]] = teacher.logits.tolist() if teacher else []

    def loss(self, student: list[list[float]], auxiliary: list[list[float]] | None, rows: list[int]) -> float:
        """The batch's total loss (eq. 5), after which the memories take in the batch."""
        tau = 1.0 if self.distillation == "tf-kd-reg" else OBJECTIVE.temperature
        total = 0.0
        for row in rows:
            target = self.target(auxiliary, row)
            p = softmax(student[row], tau)
            divergence = sum(q * math.log(q / r) for q, r in zip(target, p, strict=True) if q)
            ce = -math.log(softmax(student[row], 1.0)[LABELS[row]])
            total += (OBJECTIVE.alpha * ce + (1 - OBJECTIVE.alpha) * tau**2 * divergence) / len(rows)
        self.update(student, auxiliary, rows)
        return total

    def target(self, auxiliary: list[list[float]] | None, row: int) -> list[float]:
        tau, label = OBJECTIVE.temperature, int(LABELS[row])
        if self.distillation == "teacher":
            return softmax(self.teacher[row], tau)
        if auxiliary is None:
            d = [0.99 if k == label else 0.01 / (NUM_CLASSES - 1) for k in range(NUM_CLASSES)]
            return softmax(d, 20.0)
        return {
            "cs-kd": self.similarity[label],
            "cs-kd-pair": softmax(auxiliary[int(PARTNERS[row])], tau),
            "tf-kd": softmax(self.memory.get(row, auxiliary[row]), tau),
            "skd+teacher": mean(softmax(auxiliary[row], tau), softmax((self.teacher or auxiliary)[row], tau)),
        }.get(self.distillation, softmax(auxiliary[row], tau))

    def update(self, student: list[list[float]], auxiliary: list[list[float]] | None, rows: list[int]) -> None:
        self.memory |= {row: student[row] for row in rows}
        if auxiliary is None:
            return
        for k in {int(LABELS[row]) for row in rows}:
            members = [softmax(auxiliary[row], OBJECTIVE.temperature) for row in rows if int(LABELS[row]) == k]
            mean = [sum(column) / len(members) for column in zip(*members, strict=True)]
            self.similarity[k] = [0.9 * s + 0.1 * m for s, m in zip(self.similarity[k], mean, strict=True)]


def mean(one: list[float], other: list[float]) -> list[float]:
    return [(p + q) / 2 for p, q in zip(one, other, strict=True)]


def softmax(logits: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(z / temperature) for z in logits]
    return [e / sum(exponentials) for e in exponentials]


@pytest.mark.parametrize("distillation", VARIANTS)
@pytest.mark.parametrize("deferred", [False, True], ids=["known at once", "read later"])
def test_each_variants_loss_is_the_references_for_three_epochs(distillation: Distillation, deferred: bool) -> None:
    """S moves far at each step, so that what is remembered differs from what S would say now."""
    student_pair, reference = lookups(distillation), Reference(distillation)
    step = step_of(student_pair, distillation)
    step.optimizer.deferred = deferred
    for rows in (rows for epoch in EPOCHS for rows in epoch):
        student, auxiliary = (
            student_pair.student.logits.tolist(),
            student_pair.auxiliary and student_pair.auxiliary.logits.tolist(),
        )
        assert take(step, rows) == pytest.approx(reference.loss(student, auxiliary, rows), abs=1e-12)


def hand_worked(distillation: Distillation, student: list[float], auxiliary: list[list[float]] | None) -> float:
    """The distillation loss of sample 0, of class 0 of 2, with sample 1 for its partner, at τ = 2."""
    student_pair = StudentPair(
        student=Lookup(torch.tensor([student, student], dtype=torch.float64)),
        auxiliary=None
        if auxiliary is None
        else Lookup(torch.tensor(auxiliary, dtype=torch.float64)).requires_grad_(False),
        frozen=True,
    )
    step = step_of(student_pair, distillation, temperature=2.0)
    row, partner = torch.tensor([0]), torch.tensor([1])
    losses = step(pixels(row), torch.tensor([0]), 0.0, row, pixels(partner)).losses
    assert losses.skd is not None
    weight = 1.0 if distillation == "tf-kd-reg" else 4.0
    assert losses.total.item() == pytest.approx(0.6 * losses.ce.item() + 0.4 * weight * losses.skd.item(), abs=1e-12)
    return losses.skd.item()


TARGET = [2 * math.log(3), 0.0]
"""At τ = 2 it softens to (3/4, 1/4), and equal logits to (1/2, 1/2)."""
DIVERGENCE = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)


def test_cs_kd_pair_on_hand_worked_numbers() -> None:
    """What S′ says of the sample itself must not matter; cross-entropy is the sample's: both logits equal, so ln 2."""
    assert hand_worked("cs-kd-pair", [0.0, 0.0], [[-50.0, 50.0], TARGET]) == pytest.approx(DIVERGENCE, abs=1e-12)


def test_tf_kd_self_on_hand_worked_numbers() -> None:
    assert hand_worked("tf-kd-self", [0.0, 0.0], [TARGET, [-50.0, 50.0]]) == pytest.approx(DIVERGENCE, abs=1e-12)


def test_tf_kd_reg_on_hand_worked_numbers() -> None:
    """u = (e^0.0495, e^0.0005) / sum = (0.512248, 0.487752); S says (3/4, 1/4), which no temperature softens."""
    expected = 0.512248 * math.log(0.512248 / 0.75) + 0.487752 * math.log(0.487752 / 0.25)
    assert hand_worked("tf-kd-reg", [math.log(3), 0.0], None) == pytest.approx(expected, abs=1e-6)
    assert virtual_teacher(2)[1].tolist() == pytest.approx([0.487752, 0.512248], abs=1e-6)


def test_the_similarity_starts_as_the_identity_and_a_class_not_in_the_batch_keeps_its_row() -> None:
    step = step_of(lookups("cs-kd"), "cs-kd")
    similarity = step.targets.state["similarity"]
    assert torch.equal(similarity, torch.eye(NUM_CLASSES, dtype=torch.float64))
    take(step, [0, 1, 2])
    assert similarity[1].tolist() == [0.0, 1.0, 0.0]
    assert all(0 < float(similarity[k, k]) < 1 for k in (0, 2))
    torch.testing.assert_close(similarity.sum(dim=1), torch.ones(NUM_CLASSES, dtype=torch.float64))


def test_the_similarity_moves_a_tenth_of_the_way_to_the_batchs_mean() -> None:
    p = torch.tensor([[0.5, 0.5], [0.1, 0.9]])
    after = update_similarity(torch.eye(2), p, torch.tensor([1, 1]))
    torch.testing.assert_close(after, torch.tensor([[1.0, 0.0], [0.03, 0.97]]))


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
    batches: list[tuple[torch.Tensor, torch.Tensor]] = []
    taken = TrainingStep.__call__

    def spy(self: TrainingStep, images: torch.Tensor, labels: torch.Tensor, rate: float, *others: Any) -> Any:
        batches.append(others)
        return taken(self, images, labels, rate, *others)

    monkeypatch.setattr(TrainingStep, "__call__", spy)
    fit(StudentPair(student=network, auxiliary=network), data, config)
    assert len(batches) == 4
    normalize = data.preprocessing.normalization(torch.device("cpu"))
    for number, (rows, partners) in enumerate(batches):
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


def test_the_mean_of_two_softened_distributions_stays_finite_where_one_is_zero() -> None:
    sure, unsure = torch.tensor([[400.0, 0.0, 0.0]]), torch.zeros(1, 3)
    mean = mean_target_logits(sure, unsure, 2.0)
    torch.testing.assert_close((mean / 2.0).softmax(1), torch.tensor([[2 / 3, 1 / 6, 1 / 6]]))
