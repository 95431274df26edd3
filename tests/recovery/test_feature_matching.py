"""What a student is to say, and how far it is from saying it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from helpers.recovering import batches, beside, image_size, whole
from twinbud.config.recovery import RecoverTarget
from twinbud.recovery.feature_matching import FeatureMatchingLoss, RecoveryStep


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("target", ["own", "all"])
def test_a_student_that_is_all_of_its_teacher_has_nothing_to_learn(target: RecoverTarget, blocks: bool) -> None:
    pair = whole()
    matching, images = FeatureMatchingLoss(pair, target=target, blocks=blocks), batches(28)[0]
    targets = matching.targets(list(pair.teacher_streams(images)))
    assert len(targets) == (3 if blocks else 1)
    assert matching(list(pair.student_streams(images)), targets).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "kind", ["vit", "distilled vit", "vit with registers", "pooled vit", "convnext", "swin", "mixer"]
)
def test_the_loss_is_smooth_l1_between_normalized_tokens(kind: str) -> None:
    pair, images = beside(kind), batches(image_size(kind))[0]
    ours, theirs = pair.student.forward_features(images), pair.teacher.forward_features(images)
    if kind == "swin":
        ours, theirs = ours.flatten(1, 2), theirs.flatten(1, 2)
    if kind == "convnext":
        ours, theirs = (tokens.flatten(2).transpose(1, 2) for tokens in (ours, theirs))
    channels = pair.stream_channels(pair.blocks[-1].name)

    def standardised(tokens: torch.Tensor) -> torch.Tensor:
        centered = tokens - tokens.mean(dim=-1, keepdim=True)
        return centered / (tokens.var(dim=-1, keepdim=True, unbiased=False) + 1e-5).sqrt()

    own = FeatureMatchingLoss(pair, target="own", blocks=False)
    targets = own.targets(list(pair.teacher_streams(images)))
    expected = F.smooth_l1_loss(standardised(ours), standardised(theirs[..., channels]))
    assert own(list(pair.student_streams(images)), targets).item() == pytest.approx(expected.item(), rel=1e-4)

    everything = FeatureMatchingLoss(pair, target="all", blocks=False)
    targets = everything.targets(list(pair.teacher_streams(images)))
    mapped = torch.zeros_like(theirs)
    mapped[..., channels] = standardised(ours)  # the map starts where the student's channels are the teacher's
    expected = F.smooth_l1_loss(mapped, standardised(theirs))
    assert everything(list(pair.student_streams(images)), targets).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("target", ["own", "all"])
def test_steps_bring_the_student_nearer_and_leave_the_teacher_alone(target: RecoverTarget) -> None:
    pair, images = beside("vit"), batches(28)[0]
    pair.student.train()
    teacher = {name: tensor.clone() for name, tensor in pair.teacher.state_dict().items()}
    step = RecoveryStep(
        pair,
        FeatureMatchingLoss(pair, target=target, blocks=False),
        refit={},
        weight_decay=0.0,
        layer_decay=1.0,
        clip_norm=1.0,
        bf16=False,
        steps_per_epoch=1,
    )
    losses = [float(step(images, 1e-3)) for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(tensor, teacher[name]) for name, tensor in pair.teacher.state_dict().items())
