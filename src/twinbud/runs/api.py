"""The flat Python API: one call per job, as the command line does it.

Torch is imported when a function is called, so that ``import twinbud`` is cheap.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from twinbud.core.progress import Progress, SilentProgress, TerminalProgress
from twinbud.core.torch_state import own_torch_state

if TYPE_CHECKING:
    from torch import nn

    from twinbud.config.keywords import Settings
    from twinbud.config.schema import Attention, Family, Rule
    from twinbud.config.task import Aggregate
    from twinbud.evaluation.predictions import Predictions
    from twinbud.models.selection_io import Selection
    from twinbud.runs.inference import Evaluation
    from twinbud.runs.result import RunResult


@own_torch_state()
def train(
    *,
    data: str | Path,
    output: str | Path,
    teacher: str | None = None,
    force: bool = False,
    resume: bool = False,
    checkpoint_seconds: float = 60.0,
    pixel_cache: bool = True,
    logits: bool = False,
    measure_leak: bool = False,
    show_progress: bool = True,
    **settings: Unpack[Settings],
) -> RunResult:
    """Train, evaluate and save a student; the result is a run folder.

    Args:
        data: Folder of class folders, CSV file, ``"phantom"`` (generated images), or the name of a public set.
            ``datasets`` lists the names; the setting ``data_root`` says where a local copy is.
        output: The run folder to make.
        teacher: ``"dinov2-small"``, a timm name, ``"ARCHITECTURE@FILE.safetensors"`` or ``"local-dir:FOLDER"``.
            Not needed with the setting ``selected`` and ``recover="none"``.
        force: Replace an earlier run in ``output``.
        resume: Continue an unfinished run in ``output``.
        checkpoint_seconds: Seconds of training between two checkpoints.
        pixel_cache: Keep decoded images in the cache folder and read them from there.
        logits: Write logits to ``predictions.csv``, too.
        measure_leak: Train a second time, in ``output/naive``, on a split that ignores near-duplicates and identical
            images, and report in ``metrics.leak`` what it would claim.
        show_progress: Report on standard error.
        **settings: Any setting of ``twinbud.config.schema``; the others have the defaults of ``profile``, which is
            ``"best"`` (recommended) unless given. ``profile="paper"`` takes the paper's values.

    Returns:
        Metrics on the test part, its predictions, the history, and the folder.

    Raises:
        TwinbudError: Settings, images, teacher or output folder cannot be used.
        Stopped: The system requested a stop; the same call with ``resume=True`` continues.

    Example:
        >>> import twinbud
        >>> run = twinbud.train(  # doctest: +SKIP
        ...     data="images", teacher="dinov2-small", output="runs/first", image_size=28, epochs=1, show_progress=False
        ... )
        >>> 0 <= run.metrics.accuracy <= 1  # doctest: +SKIP
        True
    """
    from twinbud.config.loading import run_config
    from twinbud.core.launch import require_single_process
    from twinbud.runs.pipeline import train

    require_single_process("twinbud.train()")
    chosen: dict[str, Any] = {"data": str(data), **settings}
    if teacher is not None:
        chosen["teacher"] = teacher
    config = run_config(
        chosen,
        output=Path(output),
        force=force,
        resume=resume,
        checkpoint_seconds=checkpoint_seconds,
        pixel_cache=pixel_cache,
        logits=logits,
        measure_leak=measure_leak,
    )
    return train(config, _progress(show_progress))


@own_torch_state()
def evaluate(
    run: str | Path,
    data: str | Path | None = None,
    *,
    output: str | Path | None = None,
    data_root: str | Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_columns: str | None = None,
    patient_column: str | None = None,
    split_column: str | None = None,
    patient_salt: str | Path | None = None,
    aggregate: Aggregate | None = None,
    skip_broken: bool = False,
    max_megapixels: float = 36.0,
    force: bool = False,
    logits: bool = False,
    show_progress: bool = True,
) -> Evaluation:
    """Evaluate a finished run on its own test images, or on other labelled images.

    Args:
        run: A run folder.
        data: Other labelled images, as for ``train``; None for the run's own test part. Images of the run's training
            part and of its patients are left out.
        output: Folder to make with ``metrics.json``, ``predictions.csv`` and ``left_out.csv``; None for no files.
        data_root: Local copy of the set that ``data`` names, or the run; None for where it is downloaded to.
        image_column: CSV column of the image path; None for the run's, and likewise below.
        label_column: CSV column of the class name.
        label_columns: CSV columns of several labels, ``"A,B,C"``.
        patient_column: CSV column of the patient.
        split_column: CSV column with train, val or test.
        patient_salt: File with the secret that hashes patient ids of DICOM; None for the run's.
        aggregate: How the probabilities of a patient's images are joined: mean, max or noisy-or; None for the run's.
        skip_broken: Leave out images that cannot be read, and list them.
        max_megapixels: Refuse images with more pixels than this.
        force: Replace ``output``.
        logits: Write logits to ``predictions.csv``, too.
        show_progress: Report on standard error.

    Returns:
        Metrics with intervals, predictions, the images that were left out, and a note on which images these are.

    Raises:
        TwinbudError: The run is not finished, or the images cannot be used.

    Example:
        >>> import twinbud
        >>> evaluation = twinbud.evaluate("runs/first", show_progress=False)  # doctest: +SKIP
        >>> evaluation.note  # doctest: +SKIP
        "Evaluated on the test part of the run's own split."
    """
    from twinbud.runs.inference import evaluate_run

    source = {
        "data": None if data is None else str(data),
        "data_root": None if data_root is None else str(data_root),
        "image_column": image_column,
        "label_column": label_column,
        "label_columns": label_columns,
        "patient_column": patient_column,
        "split_column": split_column,
        "patient_salt": None if patient_salt is None else str(patient_salt),
        "aggregate": aggregate,
        "skip_broken": skip_broken,
        "max_megapixels": max_megapixels,
    }
    return evaluate_run(
        Path(run),
        {name: value for name, value in source.items() if value is not None},
        output=Path(output) if output is not None else None,
        force=force,
        logits=logits,
        progress=_progress(show_progress),
    )


@own_torch_state()
def predict(
    model: str | Path,
    images: str | Path | Iterable[str | Path],
    *,
    output: str | Path | None = None,
    skip_broken: bool = False,
    max_megapixels: float = 36.0,
    force: bool = False,
    logits: bool = False,
    show_progress: bool = True,
) -> Predictions:
    """Classify images with a finished run or a model folder.

    Args:
        model: A run folder, or its ``model`` folder.
        images: An image, a folder that is searched for images, or several of them.
        output: CSV file to write; None for no file. Files that are left out are listed beside it.
        skip_broken: Leave out images that cannot be read.
        max_megapixels: Refuse images with more pixels than this.
        force: Replace ``output``.
        logits: Write logits to ``output``, too.
        show_progress: Report on standard error, with a line for each file that is left out.

    Returns:
        Probabilities and logits, float32 (N, K), with paths and class names.

    Raises:
        TwinbudError: There is no model or no image, or an image cannot be read.

    Example:
        >>> import twinbud
        >>> predictions = twinbud.predict("runs/first", "images", show_progress=False)  # doctest: +SKIP
        >>> len(predictions.paths) == len(predictions.probabilities)  # doctest: +SKIP
        True
    """
    from twinbud.config.data_config import DataConfig
    from twinbud.config.fields import read_paths
    from twinbud.config.loading import stage_config
    from twinbud.data.split_notes import counted
    from twinbud.runs.inference import predict

    reading = stage_config(DataConfig, {"skip_broken": skip_broken, "max_megapixels": max_megapixels})
    paths = read_paths("images", images)
    progress = _progress(show_progress)
    predictions, ignored = predict(
        Path(model),
        paths,
        skip_broken=reading.skip_broken,
        max_megapixels=reading.max_megapixels,
        output=Path(output) if output is not None else None,
        force=force,
        logits=logits,
        progress=progress,
    )
    for file in ignored:
        progress.note(f"left out: {file.path} ({file.reason})")
    if ignored:
        counts = f"{counted(len(predictions.paths), 'image')} classified, {counted(len(ignored), 'file')} left out"
        progress.note(f"note: {counts}")
    return predictions


@own_torch_state()
def open_model(folder: str | Path) -> nn.Module:
    """Open the trained network of a finished run or of its model folder, in evaluation mode.

    It opens every model folder of twinbud, including those of networks that timm alone cannot build, such as half of a
    VGG or an EfficientNet. ``predict`` does the same with the preprocessing that belongs to the network.

    Args:
        folder: A run folder, or the folder ``model`` in it.

    Returns:
        A module that maps normalized images (B, 3, S, S), float32, to logits (B, K). Its parameters need no gradient.

    Raises:
        TwinbudError: There is no model folder, or its files do not fit together.

    Example:
        >>> import twinbud
        >>> model = twinbud.open_model("runs/first")  # doctest: +SKIP
        >>> type(model).__name__  # doctest: +SKIP
        'VisionTransformer'
    """
    from twinbud.runs.classifier import open_classifier

    return open_classifier(Path(folder)).model_folder.model


@own_torch_state()
def select(
    *,
    teacher: str,
    output: str | Path,
    student: str = "half",
    family: Family = "described",
    rule: Rule = "uniform",
    attention: Attention = "interleaved",
    swap_roles: bool = False,
    seed: int = 0,
    weights: Literal["float32", "float16"] = "float32",
    force: bool = False,
) -> Selection:
    """Select the weights of student and auxiliary from a teacher, for training on another machine.

    Train with ``twinbud.train(selected=output, recover="none", ...)`` where the teacher is not available.

    Args:
        teacher: As for ``train``.
        output: Folder to make.
        student: ``"half"`` or ``"quarter"`` of the teacher's width, or a timm name of the same family.
        family: ``"described"``, or ``"auto"`` for a network whose widths are found and proved.
        rule: Which elements of each width student and auxiliary take.
        attention: Select attention channels along one axis, whole heads, or the same channels of every head (ViT).
        swap_roles: Exchange the subsets of student and auxiliary.
        seed: Seed of the random rules.
        weights: Precision of the files.
        force: Replace an earlier output.

    Returns:
        The plan, and the weights of student and auxiliary, float32.

    Raises:
        TwinbudError: The teacher cannot be opened, or the student cannot be selected from it.

    Example:
        >>> import twinbud
        >>> selection = twinbud.select(teacher="dinov2-small", output="selected")  # doctest: +SKIP
        >>> run = twinbud.train(  # doctest: +SKIP
        ...     data="images", selected="selected", recover="none", output="runs/second", image_size=28, epochs=1,
        ...     show_progress=False,
        ... )
    """
    from twinbud.config.fields import read_value
    from twinbud.config.schema import ModelConfig
    from twinbud.models.selection_io import select_to_folder

    half_precision = read_value("weights", weights, Literal["float32", "float16"]) == "float16"
    model = ModelConfig(
        teacher=teacher, student=student, family=family, rule=rule, attention=attention, swap_roles=swap_roles
    )
    return select_to_folder(
        model, Path(output), seed=read_value("seed", seed, int), half_precision=half_precision, force=force
    )


def _progress(show: bool) -> Progress:
    return TerminalProgress() if show else SilentProgress()
