"""Teach a network: the epochs, from the start or from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from twinbud.config.schema import TrainingConfig
from twinbud.models.families.base import TimmModel
from twinbud.teaching.source import Source, Whitening
from twinbud.teaching.step import FeatureMaps, TeachingStep
from twinbud.training.amp import unfused_attention_in_bf16
from twinbud.training.epoch_loop import History, plan_steps, preserved_rng_state
from twinbud.training.execution import Execution
from twinbud.training.unlabelled import UnlabelledImages, UnlabelledLoop


def fit_features(
    learner: TimmModel,
    maps: FeatureMaps,
    source: Source,
    whitening: Whitening,
    images: UnlabelledImages,
    config: TrainingConfig,
    execution: Execution,
    *,
    kept: Mapping[str, torch.Tensor],
) -> History:
    """Train the learner, in place, to have the features of the source.

    The result depends on the images, the initial weights and the settings; the global random state is neither read nor
    changed.

    Args:
        learner: The network, on the device to train on.
        maps: Linear maps to the source's features; trained along.
        source: The source, on the same device.
        whitening: Of the source's features.
        images: The images.
        config: Resolved settings.
        execution: Precision of the learner, checkpoints and reports; not compiled.
        kept: Further tensors that checkpoints keep.

    Raises:
        TwinbudError: A loss or gradient is not finite.
        Stopped: A stop was requested; the teaching can be resumed.
    """
    plan = plan_steps(config, len(images))
    learner.train()
    step = TeachingStep(
        learner,
        maps,
        source,
        whitening,
        config,
        bf16=execution.bf16,
        kept=kept,
        steps_per_epoch=plan.steps_per_epoch,
    )
    with (
        preserved_rng_state(images.device),
        unfused_attention_in_bf16((learner,), images.device, bf16=execution.bf16),
        execution.progress.bar(execution.label, plan.num_steps, kind="steps") as advance,
    ):
        loop = UnlabelledLoop(
            step,
            images,
            config,
            checkpoints=execution.checkpoints,
            progress=execution.progress,
            label=execution.label,
            advance=advance,
        )
        for record in loop.epochs():
            if execution.on_epoch:
                execution.on_epoch(record)
            loop.save_if_due()
    learner.eval()
    return loop.history()
