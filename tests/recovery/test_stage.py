"""The stage between selection and training: what it may see, what it leaves, and that it goes on where it stopped."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.builders import VIT, half_preprocessing, save_teacher, save_vit_teacher
from twinbud.config.recovery import RecoveryConfig
from twinbud.config.schema import Attention, TrainingConfig
from twinbud.core.errors import Stopped, TwinbudError
from twinbud.models.selection import PairRole
from twinbud.models.selection_io import Selection, select
from twinbud.models.student_pair import StudentPair, build_student_pair
from twinbud.models.teacher import open_teacher_at, read_teacher_info
from twinbud.recovery import normal_equations, stream_statistics, teacher_provider
from twinbud.recovery.feature_matching import RecoveryStep
from twinbud.recovery.result import StudentRecovery
from twinbud.recovery.stage import recover
from twinbud.training.checkpoint import CheckpointFolder
from twinbud.training.checkpoint_manager import CheckpointManager
from twinbud.training.phases import RECOVERY_PHASES
from twinbud.training.unlabelled import UnlabelledImages

SETTINGS = RecoveryConfig(recover="labelled", recover_epochs=2, recover_batch_size=4, recover_views=2)
TRAINING = TrainingConfig(image_size=28, temperature=4.0, drop_path=0.0)
STEPS_EACH = 6


@pytest.fixture(scope="module")
def knowing_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """With a classifier for the three classes of the students."""
    folder = tmp_path_factory.mktemp("teacher") / "vit"
    return save_teacher(folder, "vit_tiny_patch16_224", init_values=0.5, num_classes=3, **VIT)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_vit_teacher(tmp_path_factory.mktemp("teacher") / "vit")


def images(count: int = 10) -> UnlabelledImages:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 28, 28), dtype=torch.uint8, generator=generator)
    return UnlabelledImages(images_NCSS=pixels, preprocessing=half_preprocessing(), device=torch.device("cpu"))


def start(teacher: str, *, attention: Attention = "interleaved", **settings: Any) -> tuple[StudentPair, Selection]:
    selection = select(read_teacher_info(teacher), attention=attention)
    return build_student_pair(selection, image_size=28, num_classes=3, **settings), selection


def recovered(
    teacher: str, checkpoints: CheckpointManager | None = None, *, attention: Attention | None = None, **settings: Any
) -> tuple[StudentPair, Mapping[PairRole, StudentRecovery]]:
    config = RecoveryConfig(**{**SETTINGS.__dict__, **settings})
    attention = attention or ("heads" if config.chooses_by_importance else "interleaved")
    student_pair, selection = start(teacher, attention=attention)
    teacher_info = read_teacher_info(teacher)
    return student_pair, recover(
        student_pair, selection, teacher_info, images(), config, TRAINING, checkpoints=checkpoints
    ).students


@cache
def uninterrupted(teacher: str, **settings: Any) -> tuple[StudentPair, Mapping[PairRole, StudentRecovery]]:
    """A recovery without a stop; to be read only."""
    return recovered(teacher, **settings)


def states(student_pair: StudentPair) -> list[dict[str, torch.Tensor]]:
    assert student_pair.auxiliary is not None
    return [student_pair.student.state_dict(), student_pair.auxiliary.state_dict()]


def same(one: StudentPair, other: StudentPair) -> bool:
    pairs = zip(states(one), states(other), strict=True)
    return all(torch.equal(tensor, theirs[name]) for ours, theirs in pairs for name, tensor in ours.items())


def checkpoint_manager(folder: Path) -> CheckpointManager:
    """As a run opens them, each phase with what it finds."""
    earlier = {}
    for phase in RECOVERY_PHASES.values():
        checkpoints = CheckpointFolder(folder / phase, {})
        earlier[phase] = CheckpointManager(checkpoints, checkpoints.latest()[0], save_last=True)
    return CheckpointManager(phases=earlier)


def test_student_and_auxiliary_are_changed_and_their_classifiers_are_not(teacher: str) -> None:
    before, _ = start(teacher)
    student_pair, found = uninterrupted(teacher)
    for ours, theirs in zip(states(before), states(student_pair), strict=True):
        changed = {name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])}
        assert changed == {name for name in ours if not name.startswith("head")}
    assert found.keys() == {"student", "auxiliary"}
    assert all(len(part.refit.fits) == 8 and len(part.history.epochs) == 2 for part in found.values())
    assert student_pair.auxiliary is not None
    assert not any(parameter.requires_grad for parameter in student_pair.auxiliary.parameters())
    assert all(parameter.requires_grad for parameter in student_pair.student.parameters())


def test_the_two_see_the_images_in_different_views(teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[RecoveryStep, list[torch.Tensor]] = {}
    taking = RecoveryStep.__call__

    def spy(self: RecoveryStep, images: torch.Tensor, *words: Any) -> Any:
        seen.setdefault(self, []).append(images)
        return taking(self, images, *words)

    monkeypatch.setattr(RecoveryStep, "__call__", spy)
    recovered(teacher)
    ours, theirs = (torch.cat(batches) for batches in seen.values())
    assert ours.shape == theirs.shape == (20, 3, 28, 28)
    assert not any(torch.equal(one, other) for one in ours for other in theirs)


def test_the_teacher_is_let_go_and_no_gradient_stays(teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[weakref.ref[Any]] = []

    def watched(*words: Any) -> Any:
        network = open_teacher_at(*words)
        opened.append(weakref.ref(network))
        return network

    monkeypatch.setattr(teacher_provider, "open_teacher_at", watched)
    student_pair, _ = recovered(teacher)
    gc.collect()
    assert len(opened) == 1, "one for both"
    assert opened[0]() is None
    assert student_pair.auxiliary is not None
    assert all(
        p.grad is None for network in (student_pair.student, student_pair.auxiliary) for p in network.parameters()
    )


def test_s_is_matched_without_drop_path(teacher: str) -> None:
    plain, selection = start(teacher)
    dropping, _ = start(teacher, drop_path=0.5)
    for student_pair in (plain, dropping):
        recover(student_pair, selection, read_teacher_info(teacher), images(), SETTINGS, TRAINING)
    assert same(plain, dropping)


def test_a_teacher_that_s_was_not_cut_out_of_is_refused(teacher: str, tmp_path: Path) -> None:
    student_pair, selection = start(teacher)
    other = read_teacher_info(save_vit_teacher(tmp_path / "other", seed=1))
    with pytest.raises(TwinbudError, match="selected from another teacher"):
        recover(student_pair, selection, other, images(), SETTINGS, TRAINING)


def test_a_student_with_other_patches_than_its_teachers_is_refused(tmp_path: Path) -> None:
    wide = {**VIT, "embed_dim": 384, "num_heads": 6, "depth": 12}
    teacher_info = read_teacher_info(
        save_teacher(tmp_path / "teacher", "vit_small_patch16_224", **wide | {"img_size": 32})
    )
    selection = select(teacher_info, "vit_tiny_patch16_224")  # 16 pixels, where its teacher's patches have 7
    student_pair = build_student_pair(selection, image_size=112, num_classes=2)
    with pytest.raises(TwinbudError, match=r"into 50 positions, its teacher into 257"):
        recover(student_pair, selection, teacher_info, images(), SETTINGS, replace(TRAINING, image_size=112))


def test_a_stop_during_least_squares_is_heard(teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = uninterrupted(teacher)
    checkpoints, fitting, fits = checkpoint_manager(tmp_path), normal_equations.fit_layer, []

    def counted(*words: Any) -> Any:
        fits.append(1)
        if len(fits) == 3:
            checkpoints.request_stop()
        return fitting(*words)

    with monkeypatch.context() as patch:
        patch.setattr("twinbud.recovery.least_squares.fit_layer", counted)
        with pytest.raises(Stopped, match="during least squares"):
            recovered(teacher, checkpoints)
    assert len(fits) == 3
    assert same(whole, recovered(teacher, checkpoint_manager(tmp_path))[0])


@pytest.mark.parametrize(
    "settings",
    [{"recover_epochs": 0}, {"recover_refit": "off"}, {"recover_stream": "subspace"}, {"recover_method": "corp"}],
    ids=str,
)
def test_a_finished_part_is_not_done_again(settings: dict[str, Any], teacher: str, tmp_path: Path) -> None:
    whole, found = recovered(teacher, checkpoint_manager(tmp_path), **settings)
    again, later = recovered(teacher, checkpoint_manager(tmp_path), **settings)
    assert same(whole, again)
    assert later == found, "what it cost, too"


def test_recovery_is_the_same_each_time_and_leaves_chance_alone(teacher: str) -> None:
    student_pair, selection = start(teacher)
    before = torch.get_rng_state()
    recover(student_pair, selection, read_teacher_info(teacher), images(), SETTINGS, TRAINING)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(student_pair, uninterrupted(teacher)[0])


def test_s_is_recovered_alike_with_and_without_an_auxiliary(teacher: str) -> None:
    alone, selection = start(teacher, auxiliary="none")
    recover(alone, selection, read_teacher_info(teacher), images(), SETTINGS, TRAINING)
    both, _ = uninterrupted(teacher)
    assert all(torch.equal(t, both.student.state_dict()[n]) for n, t in alone.student.state_dict().items())


def test_an_auxiliary_that_is_a_copy_of_s_stays_one(teacher: str) -> None:
    student_pair, selection = start(teacher, auxiliary="copy")
    found = recover(student_pair, selection, read_teacher_info(teacher), images(), SETTINGS, TRAINING)
    ours, theirs = states(student_pair)
    assert found.students.keys() == {"student"}
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_what_recovery_saw_of_a_view_limit_is_told(teacher: str) -> None:
    """Five views fit whatever the limit is."""
    _, found = recovered(teacher, recover_epochs=0, recover_views=9, recover_memory=1e-9)
    assert [student.refit.num_views for student in found.values()] == [5, 5]
    assert found["student"].to_json()["views"] == 5


def test_what_a_subspace_holds_is_told(teacher: str) -> None:
    _, found = recovered(teacher, recover_stream="subspace")
    first, second = (found[pair_role].to_json() for pair_role in ("student", "auxiliary"))
    assert 0 < second["subspace_explained"] < first["subspace_explained"] < 1
    assert first["kept"].keys() == {f"{kind}/blocks.{number}" for kind in ("heads", "mlp") for number in (0, 1)}
    assert sorted(first["kept"]["heads/blocks.0"] + second["kept"]["heads/blocks.0"]) == [0, 1, 2, 3]
    _, found = uninterrupted(teacher)
    assert not found["student"].to_json().keys() & {"subspace_explained", "kept"}


@pytest.mark.parametrize("settings", [{}, {"recover_epochs": 0}, {"recover_refit": "off"}], ids=str)
def test_classifiers_are_fitted_to_the_features_at_the_end(
    settings: dict[str, Any], knowing_teacher: str, tmp_path: Path
) -> None:
    plain, _ = recovered(knowing_teacher, **settings)
    student_pair, found = recovered(knowing_teacher, checkpoint_manager(tmp_path), recover_classifier="on", **settings)
    for ours, theirs in zip(states(plain), states(student_pair), strict=True):
        assert {n for n, t in ours.items() if not torch.equal(t, theirs[n])} == {"head.weight", "head.bias"}
    for student in found.values():
        fit = student.refit.classifier
        assert fit is not None
        assert student.to_json()["classifier"] == {
            "layer": "classifier", "before": fit.before, "after": fit.after, "ridge": fit.ridge,
        }  # fmt: skip
    resumed, later = recovered(knowing_teacher, checkpoint_manager(tmp_path), recover_classifier="on", **settings)
    assert same(student_pair, resumed)
    assert later == found


def test_student_and_auxiliary_share_the_statistics_of_the_teacher(
    teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring, measured = stream_statistics.measure_stream, []

    def counted(*words: Any, **more: Any) -> Any:
        measured.append(measuring(*words, **more))
        return measured[-1]

    monkeypatch.setattr("twinbud.recovery.refit_start.measure_stream", counted)
    recovered(teacher, recover_stream="subspace", recover_epochs=0)
    assert len(measured) == 1


def test_least_squares_alone_takes_no_steps(teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RecoveryStep, "__call__", lambda *_: pytest.fail("a step was taken"))
    before, _ = start(teacher)
    student_pair, found = recovered(teacher, recover_epochs=0)
    assert not same(before, student_pair)
    assert found["student"].history.num_steps == 0
    assert all(fit.ridge > 0 for fit in found["student"].refit.fits)


def test_without_least_squares_only_steps_change_it(teacher: str) -> None:
    _, found = recovered(teacher, recover_refit="off")
    assert found["student"].refit.fits == ()
    assert found["student"].history.num_steps == STEPS_EACH


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        *(({}, steps) for steps in range(1, 2 * STEPS_EACH + 1)),
        *(({"recover_stream": "subspace", "recover_target": "own"}, steps) for steps in (1, STEPS_EACH + 1)),
        *(({"recover_stream": "subspace", "attention": "within"}, steps) for steps in (1, STEPS_EACH + 1)),
    ],
    ids=str,
)
def test_recovery_stopped_after_any_step_ends_as_if_it_had_not_been(
    settings: dict[str, Any], steps: int, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, found = uninterrupted(teacher, **settings)
    checkpoints, taken = checkpoint_manager(tmp_path), []
    taking = RecoveryStep.__call__

    def counted(self: RecoveryStep, *batch: Any) -> Any:
        taken.append(1)
        if len(taken) == steps:
            checkpoints.request_stop()
        return taking(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(RecoveryStep, "__call__", counted)
        with pytest.raises(Stopped):
            recovered(teacher, checkpoints, **settings)
    resumed, again = recovered(teacher, checkpoint_manager(tmp_path), **settings)
    assert same(whole, resumed)
    for pair_role, part in found.items():
        assert again[pair_role].refit == replace(part.refit, seconds=again[pair_role].refit.seconds)
        assert [record.loss for record in again[pair_role].history.epochs] == [r.loss for r in part.history.epochs]
        assert again[pair_role].history.num_images == part.history.num_images


def test_what_was_finished_before_a_stop_needs_no_teacher(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = recovered(teacher, checkpoint_manager(tmp_path))
    monkeypatch.setattr(teacher_provider, "open_teacher_at", lambda *_: pytest.fail("the teacher was opened"))
    assert same(whole, recovered(teacher, checkpoint_manager(tmp_path))[0])
