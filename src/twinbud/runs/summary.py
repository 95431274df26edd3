"""From a finished run to what its page and its model card say."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from twinbud.config.loading import settings_of
from twinbud.core.errors import first_few
from twinbud.data.image_store import ImageStore
from twinbud.data.index import ImageIndex
from twinbud.data.split import Split
from twinbud.evaluation.predictions import Predictions
from twinbud.models.selection import SelectionPlan
from twinbud.models.selection_io import Selection
from twinbud.report.page import Example, Mistake, RunSummary, Width
from twinbud.runs.context import Job
from twinbud.training.epoch_loop import History

METHODS = {
    "dual": "dual-model weight selection and self-knowledge distillation",
    "selection": "weight selection without S′ (CM1)",
    "timm": "timm's random initialisation (CM2)",
    "xavier": "Xavier uniform initialisation (CM3)",
    "kaiming": "Kaiming normal initialisation (CM4)",
}
DISTILLATIONS = {
    "skd": "–",
    "cs-kd": "cs-kd: running class-wise means of S′'s softened outputs",
    "cs-kd-pair": "cs-kd-pair: S′'s outputs for another image of the class",
    "tf-kd": "tf-kd: S's own outputs of the epoch before",
    "tf-kd-self": "tf-kd-self: a copy of S trained beforehand, whose steps and time are counted in",
    "tf-kd-reg": "tf-kd-reg: a virtual teacher that is 99 % right",
}
AUXILIARIES = {
    "other": "–",
    "copy": "starts as a copy of S",
    "frozen": "stays as it was selected",
    "none": "none: cross-entropy alone",
}
"""Of these two, what is no default is named."""
_MAX_MISTAKES = 12


def summarize(
    job: Job, history: History, predictions: Predictions, metrics: dict[str, Any], environment: dict[str, Any]
) -> RunSummary:
    """Gather everything the report shows of one run."""
    image_index, image_store = job.image_index, job.image_store
    place = {image_index.rows[row].path: row for row in job.split.test}
    return RunSummary(
        title=f"{job.config.model.method} on {_short(job.config.data.data)}",
        facts=_facts(job, metrics, environment),
        metrics=metrics,
        history=[asdict(record) for record in history.epochs],
        mistakes=[
            Mistake(
                image=_picture(image_store, place[predictions.paths[i]]),
                path=predictions.paths[i],
                truth=predictions.classes[_labels(predictions)[i]],
                prediction=predictions.classes[predictions.predicted[i]],
                confidence=float(predictions.confidence[i]),
            )
            for i in predictions.most_confident_mistakes(_MAX_MISTAKES)
        ],
        examples=[_example(image_index, image_store, job.split, name) for name in image_index.classes[:8]],
        selection=_widths(job.initialization.selection),
        notes=[*job.split.notes, *_ignored(image_index), *_best_epoch(metrics)],
        settings=settings_of(job.config),
        environment=environment,
    )


def _facts(job: Job, metrics: dict[str, Any], environment: dict[str, Any]) -> dict[str, str]:
    model, training, split = job.config.model, job.config.training, job.split
    selection = job.initialization.selection
    facts = {
        "Method": METHODS[model.method],
        "Self-distillation": DISTILLATIONS[training.distillation],
        "S′": AUXILIARIES[model.auxiliary],
        "Teacher": selection.teacher if selection else "none (random initialisation)",
        "Student": model.student,
        "Recovery": _recovery(job, metrics),
        "Rule": _rule(selection.plan) if selection else "–",
        "Labelled images": f"{len(split.labelled):,} of {len(split.train):,} in the training part",
        "Test images": f"{len(split.test):,}{_developing(split)}, {_seen(job)}",
        "Classes": ", ".join(job.image_index.classes),
        "Image size": f"{training.image_size} × {training.image_size} pixels",
        "Training": f"{metrics['epochs']} epochs, {_num_training_steps(metrics):,} steps of {training.batch_size}",
        "Seeds": f"sampling {training.seed}, split {job.config.data.split_seed}",
        "Precision": f"{environment['precision']} ({environment['precision_reason']})",
        "Compilation": f"{environment['compilation']} ({environment['compilation_reason']})",
        "Device": f"{environment['device']}: {environment['device_name']}, threads: {environment['threads']}",
        "Time": f"{metrics['train_seconds']:.0f} s; {metrics['images_per_second']:.0f} images/s while training",
        "Peak memory": f"{metrics['peak_memory_mib']:,.0f} MiB",
    }
    return {name: text for name, text in facts.items() if text != "–"}


def _recovery(job: Job, metrics: dict[str, Any]) -> str:
    """Which images S and S′ were recovered on, how, and what it took."""
    config = job.config.recovery
    if config.recover == "none":
        return "–"
    which = "labelled images" if config.recover == "labelled" else "images of the training part, without labels"
    ways = ["least squares"] if config.recover_refit == "on" else []
    ways += [f"{config.recover_epochs} epochs of the teacher's tokens"] if config.recover_epochs else []
    number, seconds = metrics["recover_num_images"], metrics["recover_seconds"]
    return f"on {number:,} {which}: {', '.join(ways) or 'nothing'}; {seconds:.0f} s"


def _num_training_steps(metrics: dict[str, Any]) -> int:
    """Those with labels."""
    return metrics["num_steps"] - metrics.get("recover_num_steps", 0)


def _developing(split: Split) -> str:
    return f" of the training part ({len(split.closed):,} of the test part stay closed)" if split.closed else ""


def _rule(plan: SelectionPlan) -> str:
    seed = f" (seed {plan.seed})" if plan.rule.startswith("random") else ""
    return f"{plan.rule}{seed}, {plan.attention}{', roles swapped' if plan.swap_roles else ''}"


def _seen(job: Job) -> str:
    """Whether training saw any of the test images, which a split that was given or asked for can bring about."""
    digests = job.image_store.digests
    trained = {digests[row] for row in job.split.seen_by(job.config.recovery.recover)}
    seen = sum(digests[row] in trained for row in job.split.test)
    return f"{seen:,} of them identical to images it was trained on" if seen else "never seen in training"


def _labels(predictions: Predictions) -> Any:
    assert predictions.labels is not None
    return predictions.labels


def _picture(image_store: ImageStore, row: int) -> Any:
    return image_store.tensor([row])[0].permute(1, 2, 0).numpy()


def _example(image_index: ImageIndex, image_store: ImageStore, split: Split, name: str) -> Example:
    row = next(row for row in split.train if image_index.rows[row].label == name)
    return Example(image=_picture(image_store, row), label=name)


def _widths(selection: Selection | None) -> list[Width]:
    """The distinct widths, those of equal kind and size taken together."""
    if selection is None:
        return []
    groups: dict[tuple[str, int, int, float], int] = {}
    for name, width in (selection.plan.widths or selection.plan.tensor_widths).items():
        kind = name.partition("/")[0] if selection.plan.widths else "any dimension"
        overlap = width.overlap / width.student_size
        groups[kind, width.teacher_size, width.student_size, overlap] = (
            groups.get((kind, width.teacher_size, width.student_size, overlap), 0) + 1
        )
    shared = selection.auxiliary_weights is not None
    return [
        Width(f"{kind} (×{count})" if count > 1 else kind, teacher, student, overlap if shared else None)
        for (kind, teacher, student, overlap), count in groups.items()
    ]


def _ignored(image_index: ImageIndex) -> list[str]:
    if not image_index.ignored:
        return []
    named = first_few(f"{file.path} ({file.reason})" for file in image_index.ignored)
    return [f"left out, listed in left_out.csv ({len(image_index.ignored)}): {named}"]


def _best_epoch(metrics: dict[str, Any]) -> list[str]:
    if metrics["best_test_epoch"] is None:
        return []
    return [
        f"The best test pass during training was epoch {metrics['best_test_epoch']} with accuracy "
        f"{metrics['best_test_accuracy']:.3f}; choosing it looks at the test part, so the last epoch is the result."
    ]


def _short(source: str) -> str:
    return source.rstrip("/").rpartition("/")[2] or source
