"""How good S is before it has seen a label: nearest neighbours in its features, as selected and as recovered.

    python benchmarks/neighbours.py --data DATA/brain-mri [--samplings 5] [SETTING=VALUE ...]

Each image of the last fifth of the training part gets the label of the nearest labelled image, by the cosine of what
the classifier would be given; the test part stays closed. SETTING=VALUE are settings of `twinbud train`, such as
recover_epochs=0 or rule=random. About a minute a sampling on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from twinbud.config.loading import run_config
from twinbud.core.progress import SilentProgress
from twinbud.data.augment import Normalization
from twinbud.data.image_store import ImageSubset
from twinbud.models.teacher import open_teacher_at
from twinbud.recovery.stage import recover
from twinbud.runs.context import Job, targets_of
from twinbud.runs.pipeline import prepare
from twinbud.runs.resource_cache import ResourceCache
from twinbud.training.amp import cpu_threads
from twinbud.training.unlabelled import UnlabelledImages

SETTINGS: dict[str, Any] = {
    "teacher": "dinov2-small",
    "profile": "quick",
    "near_duplicates": "ignore",
    "method": "selection",
    "fraction": 0.05,
    "recover": "labelled",
    "recover_epochs": 0,
    "precision": "bf16",
    "develop": True,
}
_BATCH = 64


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--samplings", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("settings", nargs="*", metavar="SETTING=VALUE")
    options = parser.parse_args()
    given = dict(word.split("=", 1) for word in options.settings)
    resource_cache = ResourceCache()
    print("| sampling | labelled | teacher | S as selected | S as recovered | seconds |")
    print("|---|---|---|---|---|---|")
    with cpu_threads(options.threads):
        for sampling in range(options.samplings):
            settings = SETTINGS | given | {"data": options.data, "seed": sampling}
            job = prepare(run_config(settings, output=Path("-")), SilentProgress(), resource_cache)
            print(row(job, sampling), flush=True)


def row(job: Job, sampling: int) -> str:
    """One sampling."""
    assert job.teacher is not None, "there is a teacher wherever something is recovered"
    assert job.initialization.selection is not None
    student_spec, training, recovery = job.initialization.student_spec, job.config.training, job.config.recovery
    teacher = open_teacher_at(job.teacher, student_spec.family, training.image_size).to(job.device)
    before = [accuracy(job, teacher), accuracy(job, job.student_pair.student)]
    rows = job.split.seen_by(recovery.recover)
    images = UnlabelledImages(
        images_NCSS=job.image_store.rows(rows).tensor(),
        preprocessing=student_spec.preprocessing(training.image_size),
        device=job.device,
    )
    found = recover(
        job.student_pair, job.initialization.selection, job.teacher, images, recovery, training, bf16=job.precision.bf16
    )
    figures = [*before, accuracy(job, job.student_pair.student)]
    cells = [f"{figure:.3f}" for figure in figures]
    return f"| {sampling} | {len(job.split.labelled)} | {' | '.join(cells)} | {found.seconds:.0f} |"


def accuracy(job: Job, network: Any) -> float:
    """Of the nearest neighbour."""
    labelled, unseen = (
        features(job, network, job.image_store.rows(rows)) for rows in (job.split.labelled, job.split.test)
    )
    nearest = (unseen @ labelled.T).argmax(dim=1).cpu()
    known, truth = (targets_of(job, rows) for rows in (job.split.labelled, job.split.test))
    return (known[nearest] == truth).float().mean().item()


@torch.inference_mode()
def features(job: Job, network: Any, images: ImageSubset) -> torch.Tensor:
    """(N, D) float32 of length 1, what the classifier is given."""
    network.eval()
    normalize = Normalization.on(job.device, job.initialization.student_spec.mean, job.initialization.student_spec.std)
    found = [
        network.forward_head(network.forward_features(normalize(batch.to(job.device))), pre_logits=True)
        for batch in images.tensor().split(_BATCH)
    ]
    return F.normalize(torch.cat(found), dim=1)


if __name__ == "__main__":
    main()
