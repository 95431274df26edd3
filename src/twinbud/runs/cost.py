"""The cost of a run: time, memory and steps of its stages, added up."""

from __future__ import annotations

from dataclasses import replace

from twinbud.core.memory import PeakMemory
from twinbud.recovery.result import Recovery
from twinbud.runs.result import RunCost
from twinbud.runs.tuning import TunedTeacher
from twinbud.training.epoch_loop import History


def cost_of(
    history: History,
    memory: PeakMemory,
    *,
    num_train: int,
    recovery: Recovery | None = None,
    tuned: TunedTeacher | None = None,
) -> RunCost:
    """Add up time, memory and steps of training and, if any, of recovery and of the fine-tuning of the teacher."""
    cost = RunCost(
        num_train=num_train,
        num_steps=history.num_steps,
        num_passes=history.num_images,
        epochs=len(history.epochs),
        train_seconds=history.train_seconds,
        images_per_second=history.num_images / history.train_seconds if history.num_images else 0.0,
        peak_memory_mib=max(memory.mib, history.peak_memory_mib),
        memory_before_training_mib=memory.before_mib,
    )
    if recovery is not None:
        cost = replace(
            _sum(cost, recovery.num_steps, recovery.num_passes, recovery.seconds, recovery.peak_memory_mib),
            recover_num_images=recovery.num_images,
            recover_num_views=recovery.num_views,
            recover_num_views_asked=recovery.num_views_asked,
            recover_num_steps=recovery.num_steps,
            recover_num_passes=recovery.num_passes,
            recover_seconds=recovery.seconds,
            recover_peak_memory_mib=recovery.peak_memory_mib,
        )
    if tuned is not None:
        tuning = tuned.history
        cost = replace(
            _sum(cost, tuning.num_steps, tuning.num_images, tuning.train_seconds, tuning.peak_memory_mib),
            tune_num_steps=tuning.num_steps,
            tune_num_passes=tuning.num_images,
            tune_seconds=tuning.train_seconds,
            tune_peak_memory_mib=tuning.peak_memory_mib,
        )
    return cost


def _sum(cost: RunCost, num_steps: int, num_passes: int, seconds: float, peak_memory_mib: float) -> RunCost:
    """Add the cost of an earlier stage."""
    return replace(
        cost,
        num_steps=cost.num_steps + num_steps,
        num_passes=cost.num_passes + num_passes,
        train_seconds=cost.train_seconds + seconds,
        peak_memory_mib=max(cost.peak_memory_mib, peak_memory_mib),
    )
