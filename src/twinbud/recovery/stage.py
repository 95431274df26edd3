"""The recovery stage: open the teacher, refit student and auxiliary to it, and free it before training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from twinbud.config.recovery import RecoveryConfig
from twinbud.config.schema import RunConfig, TrainingConfig
from twinbud.core.errors import Stopped, TwinbudError
from twinbud.core.memory import PeakMemory
from twinbud.core.progress import Progress, SilentProgress
from twinbud.core.rng import stream_seed
from twinbud.models.families.base import TimmModel
from twinbud.models.selection import PairRole
from twinbud.models.selection_io import Selection
from twinbud.models.student_pair import StudentPair
from twinbud.models.teacher import TeacherInfo
from twinbud.recovery.channel_map import ChannelMap
from twinbud.recovery.feature_matching import FeatureMatchingLoss, RecoveryStep
from twinbud.recovery.refit import Refit, Refitter, refitted_layers
from twinbud.recovery.result import Recovery, StudentRecovery
from twinbud.recovery.teacher_provider import TeacherProvider
from twinbud.tasks.base import Task
from twinbud.tasks.single import SINGLE_LABEL
from twinbud.training.amp import unfused_attention_in_bf16
from twinbud.training.checkpoint import START, Checkpoint, EpochRecord
from twinbud.training.checkpoint_manager import CheckpointManager
from twinbud.training.epoch_loop import History, StepPlan, plan_steps, preserved_rng_state
from twinbud.training.optimizer import part
from twinbud.training.phases import RECOVERY_PHASES
from twinbud.training.unlabelled import UnlabelledImages, UnlabelledLoop

_SEED_COUNTERS: dict[PairRole, str] = {"student": "main", "auxiliary": "auxiliary"}
"""Part of the seed of each student's recovery; changing a text changes the numbers."""
_WARMUP, _CLIP_NORM = 0.1, 1.0
_PEAK = "peak_memory_mib"


def recover(
    student_pair: StudentPair,
    selection: Selection,
    teacher_info: TeacherInfo,
    images: UnlabelledImages,
    config: RecoveryConfig,
    training: TrainingConfig,
    *,
    task: Task = SINGLE_LABEL,
    bf16: bool = False,
    checkpoints: CheckpointManager | None = None,
    progress: Progress | None = None,
) -> Recovery:
    """Refit student and auxiliary by least squares, match features, fit classifiers: in place and without labels.

    Args:
        student_pair: The pair as selected, on the device of training; an auxiliary that is a copy stays one.
        selection: The weights that were selected.
        teacher_info: The teacher that they were selected from.
        images: Images for both networks.
        config: Settings of the stage; ``recover`` must not be "none".
        training: Gives image size, augmentation, weight decay, layer decay, final learning rate and seed.
        task: What the teacher's logits mean.
        bf16: Whether the networks compute in bf16 autocast.
        checkpoints: Keeps checkpoints of student and auxiliary in its phases ``RECOVERY_PHASES``.
        progress: Shows bars.

    Raises:
        TwinbudError: The teacher cannot be opened, its family does not support recovery, or a loss is not finite.
        Stopped: The run was asked to stop; it can be resumed.
    """
    if config.recover == "none":
        raise TwinbudError("'none' turns recovery off", where="recover", fix="Give labelled or unlabelled")
    checkpoints, progress = checkpoints or CheckpointManager(), progress or SilentProgress()
    students = students_to_recover(student_pair)
    refitter = Refitter(
        teacher_provider=TeacherProvider(
            teacher_info, selection, training.image_size, images.device, with_classifier=config.reads_logits
        ),
        images=images,
        task=task,
        config=config,
        training=recovery_training_config(config, training, "student"),
        with_auxiliary="auxiliary" in students,
        bf16=bf16,
        progress=progress,
    )
    found: dict[PairRole, StudentRecovery] = {}
    for pair_role, student in students.items():
        stage = _Stage(
            pair_role=pair_role,
            student=student,
            refitter=refitter,
            images=images,
            config=config,
            training_config=recovery_training_config(config, training, pair_role),
            bf16=bf16,
            checkpoints=checkpoints.phase(RECOVERY_PHASES[pair_role]),
            progress=progress,
        )
        found[pair_role] = stage.run()
    if student_pair.auxiliary is not None and student_pair.is_copy:
        student_pair.auxiliary.load_state_dict(student_pair.student.state_dict())
    return Recovery(
        students=found,
        num_images=len(images) if config.num_epochs else min(found["student"].refit.num_views, len(images)),
        num_views_asked=config.recover_views * len(images) if config.recover_refit == "on" else 0,
    )


def students_to_recover(student_pair: StudentPair) -> dict[PairRole, TimmModel]:
    """Return the student and, if there is one that is not a copy of it, the auxiliary."""
    students: dict[PairRole, TimmModel] = {"student": student_pair.student}
    if student_pair.auxiliary is not None and not student_pair.is_copy:
        students["auxiliary"] = student_pair.auxiliary
    return students


def recovery_training_config(config: RecoveryConfig, training: TrainingConfig, pair_role: PairRole) -> TrainingConfig:
    """Return the training settings of one student's feature matching: its epochs, batches, learning rate and seed."""
    return replace(
        training,
        seed=stream_seed("recovery", training.seed, _SEED_COUNTERS[pair_role]),
        epochs=max(1, config.num_epochs),
        min_steps=0,
        batch_size=config.recover_batch_size,
        learning_rate=config.recover_learning_rate,
        warmup=_WARMUP,
        clip_norm=_CLIP_NORM,
    )


def num_recovery_steps(config: RunConfig, num_images: int) -> int:
    """Return the number of optimizer steps that recovery takes on ``num_images`` for student and auxiliary together."""
    if not config.recovery.num_epochs:
        return 0
    num_students = 2 if config.auxiliary in ("other", "frozen") else 1
    return (
        num_students
        * plan_steps(recovery_training_config(config.recovery, config.training, "student"), num_images).num_steps
    )


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """Recovery of the student or the auxiliary."""

    pair_role: PairRole
    student: TimmModel
    refitter: Refitter
    images: UnlabelledImages
    config: RecoveryConfig
    training_config: TrainingConfig
    bf16: bool
    checkpoints: CheckpointManager
    progress: Progress

    @property
    def plan(self) -> StepPlan:
        """The optimizer steps of feature matching."""
        return plan_steps(self.training_config, len(self.images))

    @property
    def label(self) -> str:
        """Label of the progress bar."""
        return f"recovering the {self.pair_role}"

    def run(self) -> StudentRecovery:
        """Run least squares and then the epochs, or what a resumed run still lacks of them."""
        found = self.checkpoints.checkpoint
        if found is not None and found.position.epoch > self.config.num_epochs:  # finished before
            self.student.load_state_dict(part(found.tensors, "student."))
            return self._result(found.tensors, found.position.records)
        memory = PeakMemory(self.images.device)
        is_trained = any(parameter.requires_grad for parameter in self.student.parameters())
        self.student.eval()  # without stochastic depth, like the auxiliary
        with ExitStack() as stack:
            stack.enter_context(preserved_rng_state(self.images.device))
            channel_map = self.refitter.teacher_provider.channel_map(self.student, self.pair_role)
            networks = (self.student, channel_map.teacher)
            stack.enter_context(unfused_attention_in_bf16(networks, self.images.device, bf16=self.bf16))
            if found is not None:
                refit = self._read_refit(found.tensors)
                self.refitter.starter.resume(refit.start)
            elif self.config.recover_refit == "on":
                refit = self.refitter.refit(channel_map, self.training_config, self._check_stop)
            else:
                refit = Refit()
            if found is None and not self.config.num_epochs:
                refit = self._fit_classifier(channel_map, refit)
            kept = refit.tensors() | {_PEAK: torch.tensor(memory.mib)}
            step = self._step(refit.start.applied_to(channel_map), kept)
            if found is None:
                self.checkpoints.save(Checkpoint(position=START, tensors=step.tensors()))
            records = self._match(step, memory) if self.config.num_epochs else ()
        self.student.requires_grad_(is_trained).zero_grad(set_to_none=True)
        return self._result(step.tensors(), records)

    def _result(self, tensors: Mapping[str, torch.Tensor], records: tuple[EpochRecord, ...]) -> StudentRecovery:
        refit = self._read_refit(tensors)
        seconds = sum(record.seconds for record in records)
        return StudentRecovery(
            refit=refit,
            history=History(
                epochs=records,
                num_steps=len(records) * self.plan.steps_per_epoch,
                num_images=len(records) * len(self.images),
                train_seconds=seconds,
            ),
            seconds=seconds + refit.seconds,
            peak_memory_mib=tensors[_PEAK].item(),
        )

    def _fit_classifier(self, channel_map: ChannelMap, refit: Refit) -> Refit:
        if not self.config.recovers_classifier:
            return refit
        return self.refitter.refit_classifier(channel_map, self.training_config, refit)

    def _read_refit(self, tensors: Mapping[str, torch.Tensor]) -> Refit:
        family = self.refitter.teacher_provider.selection.student_spec.family
        return Refit.from_tensors(tensors, refitted_layers(family, self.student))

    def _check_stop(self) -> None:
        if self.checkpoints.stop_requested:
            raise Stopped("stopped during least squares; the same command with --resume starts them again")

    def _step(self, channel_map: ChannelMap, refit: Mapping[str, torch.Tensor]) -> RecoveryStep:
        self.student.requires_grad_(True)
        return RecoveryStep(
            channel_map,
            FeatureMatchingLoss(channel_map, target=self.config.recover_target, blocks=self.config.recover_blocks),
            refit=refit,
            weight_decay=self.training_config.weight_decay,
            layer_decay=self.training_config.layer_decay,
            clip_norm=self.training_config.clip_norm,
            bf16=self.bf16,
            steps_per_epoch=self.plan.steps_per_epoch,
        )

    def _match(self, step: RecoveryStep, memory: PeakMemory) -> tuple[EpochRecord, ...]:
        with self.progress.bar(self.label, self.plan.num_steps, kind="steps") as advance:
            epochs = UnlabelledLoop(
                step,
                self.images,
                self.training_config,
                checkpoints=self.checkpoints,
                progress=self.progress,
                label=self.label,
                advance=advance,
            )
            for _ in epochs.epochs():
                if epochs.position.epoch > self.plan.epochs:  # the features do not change any more
                    step.kept |= self._fit_classifier(step.channel_map, self._read_refit(step.kept)).tensors()
                step.kept[_PEAK] = torch.tensor(max(step.kept[_PEAK].item(), memory.mib))
                epochs.save_if_due()
        return tuple(epochs.records)
