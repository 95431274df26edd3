"""One run, every stage in order: images come in, a small classifier goes out, nothing walks back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from twinbud.config import ModelConfig, RunConfig, resolve
from twinbud.data.catalog import read_catalog
from twinbud.data.pixels import Pixels, load_pixels
from twinbud.data.rows import Catalog
from twinbud.data.split import Split, make_split, write_split
from twinbud.environment import describe_environment
from twinbud.evaluation.metrics import evaluate
from twinbud.evaluation.predict import predict_probabilities
from twinbud.evaluation.predictions import Predictions, write_predictions
from twinbud.memory import PeakMemory
from twinbud.models.blueprint import Blueprint, design_student
from twinbud.models.bundle import save_bundle
from twinbud.models.selected import Selection, load_selection, select
from twinbud.models.teacher import read_teacher_card
from twinbud.models.twins import Twins, build_baseline, build_twins
from twinbud.progress import Progress, SilentProgress
from twinbud.report.history import history_writer
from twinbud.report.model_card import write_model_card
from twinbud.report.page import RunSummary, write_report
from twinbud.report.summary import summarise
from twinbud.run_folder import require_run_output, started_run, write_json, write_settings
from twinbud.settings import settings_of
from twinbud.training.loop import History, LabelledImages, fit
from twinbud.training.precision import choose_device, choose_precision


@dataclass(frozen=True, kw_only=True)
class Run:
    """What ``train`` made, in memory and in ``folder``."""

    folder: Path
    metrics: dict[str, Any]
    predictions: Predictions
    history: History
    summary: RunSummary


def train(config: RunConfig, progress: Progress | None = None) -> Run:
    """Grow a small classifier from a large pretrained model and measure it on images it never saw.

    Args:
        config: The whole run; see ``twinbud.config``.
        progress: Where to report; silent by default.

    Returns:
        Metrics on the test part after the last epoch, and where everything was written.

    Raises:
        TwinbudError: Anything the caller can put right, before the run folder is made where that is possible.
    """
    progress = progress or SilentProgress()
    require_run_output(config.output, force=config.force)
    catalog = read_catalog(config.data)
    origin = open_origin(config)
    catalog, pixels = decode_images(catalog, config, progress)
    split = make_split(catalog, pixels.digests, config.data, seed=config.training.seed)
    config = replace(config, training=resolve_for(origin.design, config))
    device = choose_device(config.training.device)
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    precision = choose_precision(config.training.precision, device)
    twins = origin.build(config, num_classes=len(catalog.classes), device=device)
    with started_run(config.output, force=config.force) as folder:
        write_settings(folder, settings_of(config))
        write_split(folder / "split.csv", catalog, split)
        environment = describe_environment(device) | {
            "precision": precision.name,
            "precision_reason": precision.reason,
            "seeds": {"seed": config.training.seed, "split_seed": config.data.split_seed},
        }
        write_json(folder / "environment.json", environment)
        data = labelled_images(catalog, pixels, split, origin.design, device)
        memory = PeakMemory(device)

        def predict(rows: tuple[int, ...]) -> Predictions:
            return predict_rows(twins.student, catalog, pixels, rows, origin.design)

        with history_writer(folder) as record:
            history = fit(
                twins,
                data,
                config.training,
                bf16=precision.bf16,
                on_epoch=record,
                test_accuracy=lambda: accuracy_of(predict(split.test)),
                progress=progress,
                label=f"training {config.model.method}",
            )
        cost = cost_of(history, memory, num_train=len(data))
        predictions = predict(split.test)
        metrics = evaluate(predictions, seed=config.training.seed) | cost
        if split.val:
            metrics["val"] = evaluate(predict(split.val), seed=config.training.seed)
        summary = summarise(
            config, catalog, pixels, split, origin.selection, history, predictions, metrics, environment
        )
        write_predictions(folder / "predictions.csv", predictions)
        deliver(folder / "model", twins, origin.design, config, catalog.classes, summary)
        if origin.selection is not None:
            write_json(folder / "plan.json", origin.selection.plan.to_json())
        write_report(folder / "report.html", summary)
        write_json(folder / "metrics.json", metrics)
    return Run(folder=folder, metrics=metrics, predictions=predictions, history=history, summary=summary)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where S starts from: an architecture and, unless the start is random, weights of a teacher."""

    design: Blueprint
    selection: Selection | None

    def build(self, config: RunConfig, *, num_classes: int, device: torch.device) -> Twins:
        """S and, in ``dual``, S′ on the device they train on."""
        training, model = config.training, config.model
        assert training.drop_path != "auto", "drop_path is resolved before building"
        common = {
            "image_size": training.image_size,
            "num_classes": num_classes,
            "drop_path": training.drop_path,
            "seed": training.seed,
        }
        if self.selection is not None:
            twins = build_twins(self.selection, **common)
        else:
            twins = build_baseline(self.design, model.method, layer_scale=model.layer_scale, **common)
        for network in (twins.student, twins.auxiliary):
            if network is not None:
                network.to(device)
        return twins


def open_origin(config: RunConfig) -> Origin:
    """The students' architecture and the weights they inherit; the baselines CM2-CM4 open no teacher weights.

    Raises:
        TwinbudError: See ``select``, ``load_selection`` and ``Blueprint.timm_arguments``.
    """
    model = config.model
    selection = _open_selection(model, config.training.seed) if model.method in ("dual", "selection") else None
    if selection is not None:
        design = selection.blueprint
    elif model.selected is not None:
        design = load_selection(model.selected).blueprint
    else:
        design = design_student(read_teacher_card(model.teacher or ""), model.student)
    design.timm_arguments(config.training.image_size)
    return Origin(design=design, selection=selection)


def _open_selection(model: ModelConfig, seed: int) -> Selection:
    if model.selected is not None:
        selection = load_selection(model.selected)
        return selection if model.method == "dual" else replace(selection, auxiliary=None)
    return select(
        read_teacher_card(model.teacher or ""),
        model.student,
        rule=model.rule,
        attention=model.attention,
        seed=seed,
        swap_roles=model.swap_roles,
        twins=model.method == "dual",
    )


def resolve_for(design: Blueprint, config: RunConfig) -> Any:
    """The training settings with what the student's family decides."""
    return resolve(config.training, temperature=design.family.temperature, drop_path=design.family.drop_path)


def decode_images(catalog: Catalog, config: RunConfig, progress: Progress) -> tuple[Catalog, Pixels]:
    """Decode every image once, under a bar."""
    with progress.bar("decoding", len(catalog.rows)) as advance:
        return load_pixels(
            catalog,
            image_size=config.training.image_size,
            max_megapixels=config.data.max_megapixels,
            skip_broken=config.data.skip_broken,
            on_progress=advance,
        )


def class_indices(catalog: Catalog, rows: tuple[int, ...]) -> torch.Tensor:
    """(N,) int64 class indices of some rows."""
    return torch.tensor([catalog.classes.index(catalog.rows[row].label) for row in rows], dtype=torch.int64)


def labelled_images(
    catalog: Catalog, pixels: Pixels, split: Split, design: Blueprint, device: torch.device
) -> LabelledImages:
    """The labelled part of the training images, on the device."""
    return LabelledImages(
        images_NCSS=pixels.tensor(split.labelled).to(device),
        labels_N=class_indices(catalog, split.labelled).to(device),
        mean=design.mean,
        std=design.std,
    )


def predict_rows(
    model: torch.nn.Module, catalog: Catalog, pixels: Pixels, rows: tuple[int, ...], design: Blueprint
) -> Predictions:
    """What ``model`` says about some rows of a catalog."""
    return Predictions(
        paths=tuple(catalog.rows[row].path for row in rows),
        labels=class_indices(catalog, rows).numpy(),
        probabilities=predict_probabilities(model, pixels.tensor(rows), mean=design.mean, std=design.std),
        classes=catalog.classes,
        patient_ids=tuple(catalog.rows[row].patient_id for row in rows) if catalog.has_patients else None,
    )


def accuracy_of(predictions: Predictions) -> float:
    """Share of images classified rightly."""
    assert predictions.labels is not None
    return float((predictions.predicted == predictions.labels).mean())


def cost_of(history: History, memory: PeakMemory, *, num_train: int) -> dict[str, Any]:
    """What training took, and the best of the test passes if any were asked for."""
    tested = [record for record in history.epochs if record.test_accuracy is not None]
    best = max(tested, key=lambda record: record.test_accuracy or 0.0, default=None)
    return {
        "num_train": num_train,
        "num_steps": history.num_steps,
        "epochs": len(history.epochs),
        "train_seconds": history.train_seconds,
        "images_per_second": history.num_images / history.train_seconds,
        "peak_memory_mib": memory.mib,
        "memory_before_training_mib": memory.before_mib,
        "best_test_epoch": best.epoch if best else None,
        "best_test_accuracy": best.test_accuracy if best else None,
    }


def deliver(
    folder: Path, twins: Twins, design: Blueprint, config: RunConfig, classes: tuple[str, ...], summary: RunSummary
) -> None:
    """Write the model folder: S alone, and its card."""
    folder.mkdir()
    save_bundle(folder, twins.student, design, image_size=config.training.image_size, classes=classes)
    write_model_card(folder / "README.md", summary)
