"""The training stage of ``--method probe``: logistic regression instead of optimizer steps."""

from __future__ import annotations

from twinbud.core.progress import Progress
from twinbud.data.duplicates import blank_digests, find_groups
from twinbud.models.families.base import TimmModel
from twinbud.runs.context import Job, labelled_images
from twinbud.training.checkpoint_manager import CheckpointManager
from twinbud.training.epoch_loop import History
from twinbud.training.linear_probe import fit_probe


def probe(job: Job, network: TimmModel, checkpoints: CheckpointManager, progress: Progress) -> History:
    """Fit the classifier of ``network`` to the labelled images of a run.

    Images of one patient, and identical images, are on one side of each fold of the cross-validation.

    Raises:
        TwinbudError, Stopped: See ``fit_probe``.
    """
    groups = find_groups(
        job.image_index.rows,
        job.image_store.digests,
        blank=blank_digests(job.image_store),
        keep_duplicates_together=True,
    )
    return fit_probe(
        network,
        labelled_images(job),
        job.config.training,
        groups_N=groups.numbers[list(job.split.labelled)],
        class_names=job.image_index.classes,
        stop_requested=lambda: checkpoints.stop_requested,
        progress=progress,
    )
