"""The stage: the teacher is opened, S and S′ get back what they can of it, and it is let go before training.

Shape legend: N samples, B batch, C channels, S image side.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from twinbud.config.schema import RecoveryConfig, RunConfig, TrainingConfig
from twinbud.core.errors import Stopped, TwinbudError
from twinbud.core.memory import PeakMemory, available_bytes
from twinbud.core.progress import Progress, SilentProgress
from twinbud.core.rng import stream_seed
from twinbud.data.augment import Views
from twinbud.models.families.base import TimmModel
from twinbud.models.selection import PairRole
from twinbud.models.selection_io import Selection
from twinbud.models.student_pair import StudentPair
from twinbud.models.teacher import TeacherCard
from twinbud.recovery.channel_map import ChannelMap
from twinbud.recovery.feature_matching import FeatureMatchingLoss, LossMean, RecoveryStep
from twinbud.recovery.least_squares import LayerFit, refit_layers
from twinbud.recovery.refit_batches import UnlabelledImages, bytes_held, plan_refit_batches, refit_batches
from twinbud.recovery.result import Recovery, StudentRecovery
from twinbud.recovery.teacher_provider import TeacherProvider, num_numbers
from twinbud.training.amp import suitable_attention
from twinbud.training.checkpoint import START, Checkpoint, EpochRecord
from twinbud.training.checkpoint_manager import CheckpointManager
from twinbud.training.epoch_loop import Epochs, History, StepPlan, plan_steps, preserved_rng_state
from twinbud.training.optimizer import part
from twinbud.training.phases import RECOVERY_PHASES

NAMES: dict[PairRole, str] = {"student": "S", "auxiliary": "S′"}
_SEED_COUNTERS: dict[PairRole, str] = {"student": "main", "auxiliary": "auxiliary"}
"""Part of the seed of each student's recovery; other texts would give other numbers."""
_WARMUP, _CLIP_NORM = 0.1, 1.0
_NO_REFIT = {
    "fits": torch.zeros(0, 3, dtype=torch.float64),
    "fit_views": torch.tensor(0),
    "fit_seconds": torch.tensor(0.0, dtype=torch.float64),
}
"""What is kept of least squares that was left out: of each layer what its ``LayerFit`` says, the views, the seconds."""
_PEAK = "peak_memory_mib"


def recover(
    student_pair: StudentPair,
    selection: Selection,
    card: TeacherCard,
    images: UnlabelledImages,
    config: RecoveryConfig,
    training: TrainingConfig,
    *,
    bf16: bool = False,
    checkpoints: CheckpointManager | None = None,
    progress: Progress | None = None,
) -> Recovery:
    """Bring S and, where there is one, S′ nearer to what the teacher makes of the images, in place and without labels.

    Args:
        student_pair: S and S′ as they were selected, on the device to train on; an S′ that is a copy of S stays one.
        selection: What was cut where.
        card: The teacher that it was cut out of.
        images: What both may see.
        config: Settings of the stage.
        training: Image size, views, weight decay, layer decay, final learning rate and seed.
        bf16: Whether the networks compute in bf16 autocast.
        checkpoints: Its phases ``RECOVERY_PHASES`` keep those of S and S′.
        progress: Where to show bars.

    Raises:
        TwinbudError: The teacher cannot be opened, or a loss that is not finite.
        Stopped: The keeper was told to stop; the run can be resumed.
    """
    if config.recover == "none":
        raise TwinbudError("labelled or unlabelled", got="'none'", where="recover", fix="Leave the stage out instead")
    checkpoints, progress = checkpoints or CheckpointManager(), progress or SilentProgress()
    teacher_provider = TeacherProvider(card, selection, training.image_size, images.device)
    found: dict[PairRole, StudentRecovery] = {}
    for pair_role, student in students_to_recover(student_pair).items():
        stage = _Stage(
            pair_role=pair_role,
            student=student,
            teacher_provider=teacher_provider,
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
        num_images=len(images) if config.num_epochs else min(found["student"].num_views, len(images)),
        num_views_asked=config.recover_views * len(images) if config.recover_refit == "on" else 0,
    )


def students_to_recover(student_pair: StudentPair) -> dict[PairRole, TimmModel]:
    """S, and S′ where there is one that is not a copy of S."""
    students: dict[PairRole, TimmModel] = {"student": student_pair.student}
    if student_pair.auxiliary is not None and not student_pair.is_copy:
        students["auxiliary"] = student_pair.auxiliary
    return students


def recovery_training_config(config: RecoveryConfig, training: TrainingConfig, pair_role: PairRole) -> TrainingConfig:
    """Epochs, batches, learning rate and chance of recovery, in the words of training."""
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
    """How many steps the recovery of S and, where it has a start of its own, S′ takes on ``num_images``."""
    if not config.recovery.num_epochs:
        return 0
    num_students = 2 if config.auxiliary in ("other", "frozen") else 1
    return (
        num_students
        * plan_steps(recovery_training_config(config.recovery, config.training, "student"), num_images).num_steps
    )


def require_memory(num_bytes: int, device: torch.device) -> None:
    """Refuse least squares that would not fit, before they run out of memory.

    Raises:
        TwinbudError: Less is free.
    """
    free = available_bytes(device)
    if num_bytes > free:
        raise TwinbudError(
            f"{num_bytes / 2**20:,.1f} MiB of free memory for least squares",
            got=f"{free / 2**20:,.1f}",
            where="--recover-memory",
            fix="Lower it, so that fewer views are looked at, or lower --image-size",
        )


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """Recovery of one of the two."""

    pair_role: PairRole
    student: TimmModel
    teacher_provider: TeacherProvider
    images: UnlabelledImages
    config: RecoveryConfig
    training_config: TrainingConfig
    bf16: bool
    checkpoints: CheckpointManager
    progress: Progress

    @property
    def plan(self) -> StepPlan:
        """Its steps."""
        return plan_steps(self.training_config, len(self.images))

    @property
    def label(self) -> str:
        """What its bar is called."""
        return f"recovering {NAMES[self.pair_role]}"

    def run(self) -> StudentRecovery:
        """Least squares, then epochs, or what is missing of them."""
        found = self.checkpoints.found
        if found is not None and found.position.epoch > self.config.num_epochs:  # nothing is left to do
            self.student.load_state_dict(part(found.tensors, "student."))
            return self._recovered(found.tensors, found.position.records)
        memory = PeakMemory(self.images.device)
        is_trained = any(parameter.requires_grad for parameter in self.student.parameters())
        self.student.eval()  # without drop path, as S′ always is
        with ExitStack() as stack:
            stack.enter_context(preserved_rng_state(self.images.device))
            channel_map = self.teacher_provider.channel_map(self.student, self.pair_role)
            networks = (self.student, channel_map.teacher)
            stack.enter_context(suitable_attention(networks, self.images.device, bf16=self.bf16))
            is_refitted = self.config.recover_refit == "on" and found is None
            refit = self._refit_layers(channel_map) if is_refitted else _NO_REFIT
            step = self._step(channel_map, refit | {_PEAK: torch.tensor(memory.mib)})
            if found is None:
                self.checkpoints.save(Checkpoint(position=START, tensors=step.tensors()))
            records = self._match(step, memory) if self.config.num_epochs else ()
        self.student.requires_grad_(is_trained).zero_grad(set_to_none=True)
        return self._recovered(step.tensors(), records)

    def _recovered(self, tensors: Mapping[str, torch.Tensor], records: tuple[EpochRecord, ...]) -> StudentRecovery:
        family = self.teacher_provider.selection.student_spec.family
        names = [
            f"{name}.{linear.name}"
            for name, block in family.blocks(self.student).items()
            for linear in family.linear_maps(block)
        ]
        seconds = sum(record.seconds for record in records)
        return StudentRecovery(
            num_views=int(tensors["fit_views"]),
            fits=tuple(LayerFit(name, *row) for name, row in zip(names, tensors["fits"].tolist(), strict=False)),
            history=History(
                epochs=records,
                num_steps=len(records) * self.plan.steps_per_epoch,
                num_images=len(records) * len(self.images),
                train_seconds=seconds,
            ),
            seconds=seconds + tensors["fit_seconds"].item(),
            peak_memory_mib=tensors[_PEAK].item(),
        )

    @torch.no_grad()
    def _refit_layers(self, channel_map: ChannelMap) -> dict[str, torch.Tensor]:
        """Least squares, and what is kept of it: see ``_NO_REFIT``."""
        start, family = time.perf_counter(), channel_map.family
        num_numbers_each = num_numbers(channel_map.teacher, family, self.training_config.image_size)
        plans = list(plan_refit_batches(self.config, self.training_config, len(self.images), num_numbers_each))
        num_views = sum(len(plan.rows) for plan in plans)
        require_memory(bytes_held(plans, num_numbers_each, bf16=self.bf16), self.images.device)
        asked = self.config.recover_views * len(self.images)
        if num_views < asked:
            self.progress.note(
                f"least squares looks at {num_views:,} of {asked:,} views: no more fit in its"
                f" {self.config.recover_memory:g} GiB (--recover-memory)"
            )
        num_layers = sum(len(family.linear_maps(pair.student)) for pair in channel_map.blocks)
        with self.progress.bar(f"least squares for {NAMES[self.pair_role]}", num_layers) as advance:

            def on_layer(done: int) -> None:
                advance(done)
                if self.checkpoints.stop_requested and done < num_layers:
                    raise Stopped("stopped during least squares; the same command with --resume begins them again")

            fits = refit_layers(
                channel_map, refit_batches(plans, self.images, self.training_config), bf16=self.bf16, on_layer=on_layer
            )
        return {
            "fits": torch.tensor([[fit.before, fit.after, fit.ridge] for fit in fits], dtype=torch.float64),
            "fit_views": torch.tensor(num_views),
            "fit_seconds": torch.tensor(time.perf_counter() - start, dtype=torch.float64),
        }

    def _step(self, channel_map: ChannelMap, before: Mapping[str, torch.Tensor]) -> RecoveryStep:
        self.student.requires_grad_(True)
        return RecoveryStep(
            channel_map,
            FeatureMatchingLoss(channel_map, target=self.config.recover_target, blocks=self.config.recover_blocks),
            before=before,
            weight_decay=self.training_config.weight_decay,
            layer_decay=self.training_config.layer_decay,
            clip_norm=self.training_config.clip_norm,
            bf16=self.bf16,
            steps_per_epoch=self.plan.steps_per_epoch,
        )

    def _match(self, step: RecoveryStep, memory: PeakMemory) -> tuple[EpochRecord, ...]:
        with self.progress.bar(self.label, self.plan.num_steps, kind="steps") as advance:
            epochs = _Recovering(
                step,
                self.images,
                self.training_config,
                checkpoints=self.checkpoints,
                progress=self.progress,
                label=self.label,
                advance=advance,
            )
            for _ in epochs.run():
                step.before[_PEAK] = torch.tensor(max(step.before[_PEAK].item(), memory.mib))
                epochs.keep()
        return tuple(epochs.records)


class _Recovering(Epochs[tuple[torch.Tensor, torch.Tensor], LossMean]):
    """Epochs on images without labels."""

    step: RecoveryStep

    def begin(self) -> None:
        """Nothing to do."""

    def open_running_means(self, state: tuple[float, ...]) -> LossMean:
        """The loss alone."""
        return LossMean(self.data.device, state)

    def batches(
        self, order: Sequence[torch.Tensor], views: Views, epoch: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Sample numbers and images."""
        del epoch
        yield from zip(order, self.seen(order, views), strict=True)

    def take(self, batch: tuple[torch.Tensor, torch.Tensor], learning_rate: float, running_means: LossMean) -> None:
        """See Epochs."""
        rows_B, images_BCSS = batch
        running_means.add(self.step(images_BCSS, learning_rate), len(rows_B))
