"""Build the summary of a finished run, from which its page and its model card are made."""

from __future__ import annotations

from typing import Any

from twinbud.config.loading import settings_of
from twinbud.config.schema import Attention
from twinbud.core.errors import first_few
from twinbud.data.image_store import ImageStore
from twinbud.data.index import ImageIndex
from twinbud.data.split import Split
from twinbud.evaluation.predictions import Predictions
from twinbud.models.selection import SelectionPlan
from twinbud.models.selection_io import Selection
from twinbud.report.model import Example, Mistake, RunSummary, Width, encode_picture
from twinbud.runs.context import Job
from twinbud.runs.result import RunMetrics
from twinbud.training.epoch_loop import History

METHODS = {
    "dual": "dual-model weight selection and self-knowledge distillation",
    "selection": "weight selection without auxiliary (CM1)",
    "timm": "random initialization of timm (CM2)",
    "xavier": "Xavier uniform initialization (CM3)",
    "kaiming": "Kaiming normal initialization (CM4)",
    "finetune": "a pretrained network, trained whole",
    "probe": "logistic regression on the features of a pretrained network, which is not trained",
}
DISTILLATIONS = {
    "skd": None,
    "cs-kd": "cs-kd: running class-wise means of the auxiliary's softened outputs",
    "cs-kd-pair": "cs-kd-pair: outputs of the auxiliary for another image of the class",
    "tf-kd": "tf-kd: outputs of the student in the previous epoch",
    "tf-kd-self": "tf-kd-self: outputs of a copy of the student trained in a first phase, whose cost is included",
    "tf-kd-reg": "tf-kd-reg: a virtual teacher that is 99 % correct",
    "teacher": "teacher: outputs of the teacher for the student's view of the image",
    "skd+teacher": "skd+teacher: mean of the softened outputs of auxiliary and teacher",
}
"""None for the default, which the report does not mention."""
AUXILIARIES = {
    "other": None,
    "copy": "starts as a copy of the student",
    "frozen": "keeps its selected weights",
    "none": "none: cross-entropy alone",
}
"""None for the default, which the report does not mention."""
_HEADS: dict[Attention, str] = {
    "interleaved": "each head from channels of several heads of the teacher",
    "heads": "whole heads",
    "within": "all heads, each narrower",
}
"""What the student takes of the heads of a teacher with attention."""
_MAX_MISTAKES = 12
_MAX_EXAMPLES = 8


def summarize(
    job: Job, history: History, predictions: Predictions, metrics: RunMetrics, environment: dict[str, Any]
) -> RunSummary:
    """Collect everything that the report shows of one run.

    Args:
        job: The run.
        history: Epochs to show: those of the student, or of its teacher if it was not trained.
        predictions: Predictions of the test part.
        metrics: Metrics of the run.
        environment: Content of ``environment.json``.
    """
    image_index, image_store = job.image_index, job.image_store
    return RunSummary(
        title=f"{job.config.model.method} on {_short(job.config.data.data)}",
        facts=_facts(job, metrics, environment),
        metrics=metrics.evaluation,
        leak=metrics.leak,
        num_train=metrics.num_train,
        histories={"": history.epochs} if history.epochs else {},
        mistakes=_mistakes(job, predictions),
        examples=tuple(
            _example(image_index, image_store, job.split, name) for name in image_index.classes[:_MAX_EXAMPLES]
        ),
        selection=_widths(job.initialization.selection),
        notes=(*job.split.notes, *_ignored(image_index), *_best_epoch(metrics)),
        settings=settings_of(job.config),
        environment=environment,
        opens_with_timm=job.initialization.student_spec.shapes is None,
    )


def _facts(job: Job, metrics: RunMetrics, environment: dict[str, Any]) -> dict[str, str]:
    model, training, split = job.config.model, job.config.training, job.split
    selection = job.initialization.selection
    facts = {
        "Method": METHODS[model.method],
        "Self-distillation": DISTILLATIONS[training.distillation],
        "Auxiliary": AUXILIARIES[model.auxiliary],
        "Teacher": _teacher(job, metrics),
        "Student": model.student,
        "Recovery": _recovery(job, metrics),
        "Selection rule": _rule(selection.plan, has_heads=_has_heads(job)) if selection else None,
        "Labelled images": f"{len(split.labelled):,} of {len(split.train):,} in the training part",
        "Test images": f"{len(split.test):,}{_developing(split)}, {_seen(job)}",
        "Task": None if job.task.is_exclusive and not job.task.has_order else job.task.name,
        "Classes": ", ".join(job.image_index.classes),
        "Balance": None if training.balance == "none" else training.balance,
        "Image size": f"{training.image_size} × {training.image_size} pixels",
        "Training": _training(metrics),
        "Batch size": f"{training.batch_size}",
        "Seeds": f"sampling {training.seed}, split {job.config.data.split_seed}",
        "Precision": f"{environment['precision']} ({environment['precision_reason']})",
        "Compilation": f"{environment['compilation']} ({environment['compilation_reason']})",
        "Device": f"{environment['device']}: {environment['device_name']}, threads: {environment['threads']}"
        + (f", processes: {environment['processes']}" if "processes" in environment else ""),
        "Time": _time(metrics),
        "Network": _network(metrics),
        "Peak memory": f"{metrics.peak_memory_mib:,.0f} MiB",
    }
    return {name: text for name, text in facts.items() if text is not None}


def _teacher(job: Job, metrics: RunMetrics) -> str:
    """Name the teacher, and whether it was fine-tuned; a random start has none unless it learns from one."""
    initialization, training = job.initialization, job.config.training
    if initialization.pretrained is not None and not training.learns_from_teacher:
        return job.config.model.pretrained or ""
    if initialization.selection is None and not training.learns_from_teacher:
        return "none (random initialization)"
    name = job.config.model.teacher or ""
    if not job.config.tuning.tune_teacher:
        return name
    return f"{name}, fine-tuned on the labelled images: {metrics.tune_num_steps:,} steps, {metrics.tune_seconds:.0f} s"


def _mistakes(job: Job, predictions: Predictions) -> tuple[Mistake, ...]:
    row_of_path = {job.image_index.rows[row].path: row for row in job.split.test}
    assert predictions.labels is not None
    labels, predicted = (predictions.asked.texts(values) for values in (predictions.labels, predictions.predicted))
    return tuple(
        Mistake(
            picture=_picture(job.image_store, row_of_path[predictions.paths[i]]),
            path=predictions.paths[i],
            label=labels[i],
            prediction=predicted[i],
            confidence=float(predictions.mistakes[i]),
        )
        for i in predictions.most_confident_mistakes(_MAX_MISTAKES)
    )


def _recovery(job: Job, metrics: RunMetrics) -> str | None:
    """Describe images, steps and time of recovery; None without it."""
    config = job.config.recovery
    if config.recover == "none":
        return None
    which = "labelled images" if config.recover == "labelled" else "images of the training part, without labels"
    ways = ["least squares"] if config.recover_refit == "on" else []
    ways += ["classifier fitted to the teacher's"] if config.recover_classifier == "on" else []
    ways += [f"{config.recover_epochs} epochs of feature matching"] if config.recover_epochs else []
    return f"on {metrics.recover_num_images:,} {which}: {', '.join(ways) or 'no step'}; {metrics.recover_seconds:.0f} s"


def _network(metrics: RunMetrics) -> str:
    """Describe size and latency of the delivered network, which every new run has."""
    parameters, multiplications = metrics.num_parameters or 0, metrics.num_multiplications or 0
    return (
        f"{parameters / 1e6:.2f} million parameters; {multiplications / 1e9:.3f} billion multiplications and "
        f"{1e3 * (metrics.latency_seconds or 0):.0f} ms per image on one CPU thread"
    )


def _training(metrics: RunMetrics) -> str:
    """Describe the training of the student itself."""
    num_steps = metrics.num_steps - (metrics.recover_num_steps or 0) - (metrics.tune_num_steps or 0)
    return f"{metrics.epochs} epochs, {num_steps:,} steps" if num_steps else "none: no optimizer step of the student"


def _time(metrics: RunMetrics) -> str:
    rate = f"; training at {metrics.images_per_second:.0f} images/s" if metrics.images_per_second else ""
    return f"{metrics.train_seconds:.0f} s{rate}"


def _developing(split: Split) -> str:
    return f" of the training part ({len(split.held_out):,} of the test part are not used)" if split.held_out else ""


def _rule(plan: SelectionPlan, *, has_heads: bool) -> str:
    seed = f" (seed {plan.seed})" if plan.rule.startswith("random") else ""
    heads = f"; {_HEADS[plan.attention]} (--attention {plan.attention})" if has_heads else ""
    return f"{plan.rule}{seed}{heads}{'; roles swapped' if plan.swap_roles else ''}"


def _has_heads(job: Job) -> bool:
    """Return whether the student has attention whose heads were selected."""
    specs = job.initialization.student_spec.family.specs(job.student_pair.student)
    return any(axis.head_size or axis.kind == "heads" for spec in specs.values() for _, axis in spec.widths())


def _seen(job: Job) -> str:
    """State how many test images are identical to images in training, which a given split may cause."""
    digests = job.image_store.digests
    trained = {digests[row] for row in job.split.seen_by(job.config.recovery.recover)}
    seen = sum(digests[row] in trained for row in job.split.test)
    return f"{seen:,} of them identical to training images" if seen else "never seen in training"


def _picture(image_store: ImageStore, row: int) -> bytes:
    return encode_picture(image_store.tensor([row])[0].permute(1, 2, 0).numpy())


def _example(image_index: ImageIndex, image_store: ImageStore, split: Split, name: str) -> Example:
    row = next(row for row in split.train if name in image_index.rows[row].shown)
    return Example(picture=_picture(image_store, row), label=name)


def _widths(selection: Selection | None) -> tuple[Width, ...]:
    """Return the selected widths, those of equal kind and size counted together."""
    if selection is None:
        return ()
    groups: dict[tuple[str, int, int, float], int] = {}
    for name, width in (selection.plan.widths or selection.plan.tensor_widths).items():
        kind = name.partition("/")[0] if selection.plan.widths else "any dimension"
        overlap = width.overlap / width.student_size
        groups[kind, width.teacher_size, width.student_size, overlap] = (
            groups.get((kind, width.teacher_size, width.student_size, overlap), 0) + 1
        )
    shared = selection.auxiliary_weights is not None
    return tuple(
        Width(
            name=f"{kind} (×{count})" if count > 1 else kind,
            teacher=teacher,
            student=student,
            overlap=overlap if shared else None,
        )
        for (kind, teacher, student, overlap), count in groups.items()
    )


def _ignored(image_index: ImageIndex) -> list[str]:
    if not image_index.ignored:
        return []
    named = first_few(f"{file.path} ({file.reason})" for file in image_index.ignored)
    return [f"left out, listed in left_out.csv ({len(image_index.ignored)}): {named}"]


def _best_epoch(metrics: RunMetrics) -> list[str]:
    if metrics.best_test_epoch is None:
        return []
    return [
        f"The highest test accuracy during training is {metrics.best_test_accuracy:.3f} at epoch "
        f"{metrics.best_test_epoch}. Choosing that epoch would use the test part, so the result is that of the last."
    ]


def _short(source: str) -> str:
    return source.rstrip("/").rpartition("/")[2] or source
