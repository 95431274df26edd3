"""Logistic regression as the training stage of ``--method probe``, and as the classifier that training starts from."""

from __future__ import annotations

from twinbud.core.errors import first_few
from twinbud.core.progress import Progress
from twinbud.data.duplicates import blank_digests, find_groups
from twinbud.models.families.base import TimmModel
from twinbud.runs.context import Job, labelled_images, targets_of
from twinbud.training.checkpoint_manager import CheckpointManager
from twinbud.training.epoch_loop import History
from twinbud.training.linear_probe import fit_probe, num_views


def probe(job: Job, network: TimmModel, checkpoints: CheckpointManager, progress: Progress) -> History:
    """Fit the classifier of ``network`` to the labelled images of a run.

    Images of one patient, identical images, and near-duplicates that the split keeps together are on one side of each
    fold of the cross-validation.

    Raises:
        TwinbudError, Stopped: See ``fit_probe``.
    """
    groups = find_groups(
        job.image_index.rows,
        job.image_store.digests,
        blank=blank_digests(job.image_store),
        keep_duplicates_together=True,
        near_pairs=job.split.near_pairs,
    )
    return fit_probe(
        network,
        labelled_images(job),
        job.config.training,
        groups_N=groups.numbers[list(job.split.labelled)],
        class_names=job.image_index.classes,
        bf16=job.bf16,
        stop_requested=lambda: checkpoints.stop_requested,
        progress=progress,
    )


def start_from_probe(job: Job, checkpoints: CheckpointManager, progress: Progress) -> History:
    """Fit the student's classifier before all weights are trained, if ``classifier_start`` asks for it.

    The gradients of a random classifier would change the features before it has learned anything (Kumar et al.,
    "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022). Nothing happens if
    recovery fitted the classifier, or if a class has no labelled image.

    Returns:
        Its cost, without epochs; without seconds if training goes on from a checkpoint.

    Raises:
        Stopped: See ``fit_probe``.
    """
    config, classes = job.config, job.image_index.classes
    if config.training.classifier_start == "random" or config.recovery.recovers_classifier:
        return History()
    counts_C = job.task.counts(targets_of(job, job.split.labelled))
    if absent := [name for name, count in zip(classes, counts_C, strict=True) if not count]:
        progress.note(f"the classifier starts at random, since no image of {first_few(absent)} is labelled")
        return History()
    if checkpoints.checkpoint is not None:  # its weights include the classifier; the time is not known any more
        return History(num_images=num_views(len(job.split.labelled)) * len(job.split.labelled))
    return probe(job, job.student_pair.student, checkpoints, progress)
