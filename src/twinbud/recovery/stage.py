"""The stage: the teacher is opened, S and S′ get back what they can of it, and it is let go before training.

Shape legend: N samples, B batch, C channels, S image side.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from twinbud.config import RecoveryConfig, RunConfig, TrainingConfig
from twinbud.data.augment import Views
from twinbud.errors import Stopped, TwinbudError
from twinbud.memory import PeakMemory, available_bytes
from twinbud.models.families.base import TimmModel
from twinbud.models.selected import Selection
from twinbud.models.selection import Twin
from twinbud.models.teacher import TeacherCard
from twinbud.models.twins import Twins
from twinbud.progress import Progress, SilentProgress
from twinbud.recovery.counterparts import Counterparts
from twinbud.recovery.lender import Lender, num_numbers
from twinbud.recovery.looks import UnlabelledImages, bytes_held, lessons, plan_looks
from twinbud.recovery.matching import LossSums, Matching, RecoveryStep
from twinbud.recovery.outcome import Recovered, Recovery
from twinbud.recovery.reconstruction import Fit, reconstruct
from twinbud.run_folder import RECOVERY_PHASES
from twinbud.seeds import stream_seed
from twinbud.training.checkpoint import START, Checkpoint, EpochRecord
from twinbud.training.epochs import Epochs, History, StepPlan, plan_steps, untouched_chance
from twinbud.training.keeper import Keeper
from twinbud.training.optimiser import part
from twinbud.training.precision import suitable_attention

NAMES: dict[Twin, str] = {"main": "S", "auxiliary": "S′"}
_WARMUP, _CLIP_NORM = 0.1, 1.0
_NO_REFIT = {
    "fits": torch.zeros(0, 3, dtype=torch.float64),
    "fit_views": torch.tensor(0),
    "fit_seconds": torch.tensor(0.0, dtype=torch.float64),
}
"""What is kept of least squares that was left out: of each layer what its ``Fit`` says, the views, the seconds."""
_PEAK = "peak_memory_mib"


def recover(
    twins: Twins,
    selection: Selection,
    card: TeacherCard,
    images: UnlabelledImages,
    config: RecoveryConfig,
    training: TrainingConfig,
    *,
    bf16: bool = False,
    keeper: Keeper | None = None,
    progress: Progress | None = None,
) -> Recovery:
    """Bring S and, where there is one, S′ nearer to what the teacher makes of the images, in place and without labels.

    Args:
        twins: S and S′ as they were selected, on the device to train on; an S′ that is a copy of S stays one.
        selection: What was cut where.
        card: The teacher that it was cut out of.
        images: What both may see.
        config: Settings of the stage.
        training: Image size, views, weight decay, layer decay, final learning rate and seed.
        bf16: Whether the networks compute in bf16 autocast.
        keeper: Its phases ``RECOVERY_PHASES`` keep those of S and S′.
        progress: Where to show bars.

    Raises:
        TwinbudError: The teacher cannot be opened, or a loss that is not finite.
        Stopped: The keeper was told to stop; the run can be resumed.
    """
    if config.recover == "none":
        raise TwinbudError("labelled or unlabelled", got="'none'", where="recover", fix="Leave the stage out instead")
    keeper, progress = keeper or Keeper(), progress or SilentProgress()
    lender = Lender(card, selection, training.image_size, images.device)
    found: dict[Twin, Recovered] = {}
    for twin, student in students_to_recover(twins).items():
        stage = _Stage(
            twin=twin,
            student=student,
            lender=lender,
            images=images,
            config=config,
            pace=pace_of(config, training, twin),
            bf16=bf16,
            keeper=keeper.phase(RECOVERY_PHASES[twin]),
            progress=progress,
        )
        found[twin] = stage.run()
    if twins.auxiliary is not None and twins.is_copy:
        twins.auxiliary.load_state_dict(twins.student.state_dict())
    return Recovery(
        students=found,
        num_images=len(images) if config.num_epochs else min(found["main"].num_views, len(images)),
        num_views_asked=config.recover_views * len(images) if config.recover_refit == "on" else 0,
    )


def students_to_recover(twins: Twins) -> dict[Twin, TimmModel]:
    """S, and S′ where there is one that is not a copy of S."""
    students: dict[Twin, TimmModel] = {"main": twins.student}
    if twins.auxiliary is not None and not twins.is_copy:
        students["auxiliary"] = twins.auxiliary
    return students


def pace_of(config: RecoveryConfig, training: TrainingConfig, twin: Twin) -> TrainingConfig:
    """Epochs, batches, learning rate and chance of recovery, in the words of training."""
    return replace(
        training,
        seed=stream_seed("recovery", training.seed, twin),
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
    return num_students * plan_steps(pace_of(config.recovery, config.training, "main"), num_images).num_steps


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

    twin: Twin
    student: TimmModel
    lender: Lender
    images: UnlabelledImages
    config: RecoveryConfig
    pace: TrainingConfig
    bf16: bool
    keeper: Keeper
    progress: Progress

    @property
    def plan(self) -> StepPlan:
        """Its steps."""
        return plan_steps(self.pace, len(self.images))

    @property
    def label(self) -> str:
        """What its bar is called."""
        return f"recovering {NAMES[self.twin]}"

    def run(self) -> Recovered:
        """Least squares, then epochs, or what is missing of them."""
        found = self.keeper.found
        if found is not None and found.position.epoch > self.config.num_epochs:  # nothing is left to do
            self.student.load_state_dict(part(found.tensors, "student."))
            return self._recovered(found.tensors, found.position.records)
        memory = PeakMemory(self.images.device)
        is_trained = any(parameter.requires_grad for parameter in self.student.parameters())
        self.student.eval()  # without drop path, as S′ always is
        with ExitStack() as stack:
            stack.enter_context(untouched_chance(self.images.device))
            counterparts = self.lender.beside(self.student, self.twin)
            networks = (self.student, counterparts.teacher)
            stack.enter_context(suitable_attention(networks, self.images.device, bf16=self.bf16))
            is_refitted = self.config.recover_refit == "on" and found is None
            refit = self._reconstruct(counterparts) if is_refitted else _NO_REFIT
            step = self._step(counterparts, refit | {_PEAK: torch.tensor(memory.mib)})
            if found is None:
                self.keeper.save(Checkpoint(position=START, tensors=step.tensors()))
            records = self._match(step, memory) if self.config.num_epochs else ()
        self.student.requires_grad_(is_trained).zero_grad(set_to_none=True)
        return self._recovered(step.tensors(), records)

    def _recovered(self, tensors: Mapping[str, torch.Tensor], records: tuple[EpochRecord, ...]) -> Recovered:
        family = self.lender.selection.blueprint.family
        names = [
            f"{name}.{linear.name}"
            for name, block in family.blocks(self.student).items()
            for linear in family.linear_maps(block)
        ]
        seconds = sum(record.seconds for record in records)
        return Recovered(
            num_views=int(tensors["fit_views"]),
            fits=tuple(Fit(name, *row) for name, row in zip(names, tensors["fits"].tolist(), strict=False)),
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
    def _reconstruct(self, counterparts: Counterparts) -> dict[str, torch.Tensor]:
        """Least squares, and what is kept of it: see ``_NO_REFIT``."""
        start, family = time.perf_counter(), counterparts.family
        num_numbers_each = num_numbers(counterparts.teacher, family, self.pace.image_size)
        looks = list(plan_looks(self.config, self.pace, len(self.images), num_numbers_each))
        num_views = sum(len(look.rows) for look in looks)
        require_memory(bytes_held(looks, num_numbers_each, bf16=self.bf16), self.images.device)
        asked = self.config.recover_views * len(self.images)
        if num_views < asked:
            self.progress.note(
                f"least squares looks at {num_views:,} of {asked:,} views: no more fit in its"
                f" {self.config.recover_memory:g} GiB (--recover-memory)"
            )
        num_layers = sum(len(family.linear_maps(pair.student)) for pair in counterparts.blocks)
        with self.progress.bar(f"least squares for {NAMES[self.twin]}", num_layers) as advance:

            def fitted(done: int) -> None:
                advance(done)
                if self.keeper.stopping and done < num_layers:
                    raise Stopped("stopped during least squares; the same command with --resume begins them again")

            fits = reconstruct(counterparts, lessons(looks, self.images, self.pace), bf16=self.bf16, on_layer=fitted)
        return {
            "fits": torch.tensor([[fit.before, fit.after, fit.ridge] for fit in fits], dtype=torch.float64),
            "fit_views": torch.tensor(num_views),
            "fit_seconds": torch.tensor(time.perf_counter() - start, dtype=torch.float64),
        }

    def _step(self, counterparts: Counterparts, before: Mapping[str, torch.Tensor]) -> RecoveryStep:
        self.student.requires_grad_(True)
        return RecoveryStep(
            counterparts,
            Matching(counterparts, target=self.config.recover_target, blocks=self.config.recover_blocks),
            before=before,
            weight_decay=self.pace.weight_decay,
            layer_decay=self.pace.layer_decay,
            clip_norm=self.pace.clip_norm,
            bf16=self.bf16,
            steps_per_epoch=self.plan.steps_per_epoch,
        )

    def _match(self, step: RecoveryStep, memory: PeakMemory) -> tuple[EpochRecord, ...]:
        with self.progress.bar(self.label, self.plan.num_steps) as advance:
            epochs = _Recovering(
                step,
                self.images,
                self.pace,
                keeper=self.keeper,
                progress=self.progress,
                label=self.label,
                advance=advance,
            )
            for _ in epochs.run():
                step.before[_PEAK] = torch.tensor(max(step.before[_PEAK].item(), memory.mib))
                epochs.keep()
        return tuple(epochs.records)


class _Recovering(Epochs[tuple[torch.Tensor, torch.Tensor], LossSums]):
    """Epochs on images without labels."""

    step: RecoveryStep

    def begin(self) -> None:
        """Nothing to do."""

    def open_sums(self, state: tuple[float, ...]) -> LossSums:
        """The loss alone."""
        return LossSums(self.data.device, state)

    def batches(
        self, order: Sequence[torch.Tensor], views: Views, epoch: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Sample numbers and images."""
        del epoch
        yield from zip(order, self.seen(order, views), strict=True)

    def take(self, batch: tuple[torch.Tensor, torch.Tensor], learning_rate: float, sums: LossSums) -> None:
        """See Epochs."""
        rows_B, images_BCSS = batch
        sums.add(self.step(images_BCSS, learning_rate), len(rows_B))
