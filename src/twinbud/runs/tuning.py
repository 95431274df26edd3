"""Fine-tune the teacher on the labelled images, before the student's weights are selected from it.

The fine-tuning is a run of the method ``finetune`` without an evaluation. The tuned teacher has a classifier for the
classes of the run: recovery can refit the student's classifier to it, and training can take soft targets from it.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from twinbud.config.recovery import RecoveryConfig
from twinbud.config.schema import ModelConfig, RunConfig, TrainingConfig
from twinbud.config.tuning import TuningConfig
from twinbud.core.errors import Stopped, TwinbudError, explained_writes, first_line
from twinbud.core.files import new_folder, read_sealed, sealed, write_json
from twinbud.core.memory import PeakMemory
from twinbud.core.progress import Progress
from twinbud.core.typed_json import from_json, to_json
from twinbud.models.model_folder import save_model_folder
from twinbud.models.teacher import TeacherInfo, read_teacher_info
from twinbud.models.teacher_fingerprint import teacher_fingerprint
from twinbud.runs.context import Job
from twinbud.runs.fitting import fit_job
from twinbud.runs.memory import require_training_memory
from twinbud.runs.probe import start_from_probe
from twinbud.runs.resume import run_identity
from twinbud.training.checkpoint_manager import CheckpointManager
from twinbud.training.epoch_loop import History
from twinbud.training.execution import Execution

TUNING_FILE = "tuning.json"
_TEACHER = "teacher"
"""In ``tuning.json``: the fingerprint of the tuned teacher."""
_UNUSED = ("profile", "distillation", "alpha", "beta", "temperature")
"""Training settings that the fine-tuning does not use: with other values of them, runs can share a tuned teacher."""
_LABEL = "fine-tuning the teacher"
_POLL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class TunedTeacher:
    """A teacher that was fine-tuned on the labelled images.

    Attributes:
        info: The teacher, in a model folder that timm opens.
        history: Epochs and cost of the fine-tuning, whichever run paid it, as ``tuning.json`` stores them.
    """

    info: TeacherInfo
    history: History


def tuning_config(config: RunConfig) -> RunConfig:
    """Return the settings of the fine-tuning that ``config`` asks for, as those of a run."""
    return replace(
        config,
        model=ModelConfig(teacher=config.model.teacher, student="same", method="finetune"),
        training=tuning_training_config(config),
        recovery=RecoveryConfig(),
        tuning=TuningConfig(),
    )


def tuning_training_config(config: RunConfig) -> TrainingConfig:
    """Return the training settings of the fine-tuning: its own epochs and learning rates, the rest as the student's."""
    tuning = config.tuning
    return replace(
        config.training,
        epochs=tuning.tune_epochs,
        min_steps=tuning.tune_min_steps,
        learning_rate=tuning.tune_learning_rate,
        layer_decay=tuning.tune_layer_decay,
        evaluate_every=None,
        **{name: getattr(TrainingConfig(), name) for name in _UNUSED},
    )


def is_shared_tuning(config: RunConfig) -> bool:
    """Return whether the run is nothing but the fine-tuning that other runs of its study start from."""
    return config.teacher_cache is not None and _is_tuning(config)


def _is_tuning(config: RunConfig) -> bool:
    """Return whether the run is nothing but the fine-tuning of its teacher."""
    training = config.training
    is_plain = not training.learns_from_teacher and training.evaluate_every is None
    return (config.model.method, config.model.student) == ("finetune", "same") and is_plain


def shared_tuning_config(config: RunConfig) -> RunConfig | None:
    """Return the settings of the fine-tuning that the run starts from, or consists of; None if there is none.

    Runs of a study for which they have the same effect share the tuned teacher.
    """
    if config.tuning.tune_teacher:
        return tuning_config(config)
    return config if _is_tuning(config) else None


def tune_teacher(job: Job, folder: Path, checkpoints: CheckpointManager, progress: Progress) -> TunedTeacher:
    """Fine-tune the teacher and save it, or take the one that an earlier run with the same settings saved.

    Args:
        job: The run of ``tuning_config``, or one for which ``is_shared_tuning`` holds.
        folder: Where the tuned teacher is saved; with ``job.config.teacher_cache``, it is saved there instead, for the
            other runs that use the cache.
        checkpoints: The fine-tuning's own.
        progress: Shows a bar.

    Raises:
        TwinbudError: The memory does not suffice, a loss is not finite, the folder cannot be written, or the saved
            teacher is damaged.
        Stopped: A stop was requested; the run can be resumed.
    """
    cache = job.config.teacher_cache
    if cache is not None:
        folder = cache / _key(job)
    with _exclusive(folder, checkpoints) if cache is not None else nullcontext():
        is_tuned = os.path.lexists(folder / TUNING_FILE)
        if not is_tuned:
            _tune(job, folder, checkpoints, progress)
    history = _read_history(folder)
    if is_tuned:
        with progress.bar(_LABEL, history.num_steps, kind="steps") as advance:
            advance(history.num_steps)
    return TunedTeacher(info=read_teacher_info(f"local-dir:{folder.absolute()}"), history=history)


def _read_history(folder: Path) -> History:
    """Read the epochs of a tuned teacher, whose other files must be those that were saved.

    Raises:
        TwinbudError: A file is missing or damaged.
    """
    path = folder / TUNING_FILE
    fix = f"Delete the folder {folder}, and repeat the command"
    try:
        history, saved = read_sealed(
            path, lambda content: (from_json(History, content, TUNING_FILE), content.get(_TEACHER))
        )
        found = teacher_fingerprint(f"local-dir:{folder}")
    except (OSError, ValueError) as error:
        problem = f"the epochs of the fine-tuning cannot be read ({first_line(error)})"
        raise TwinbudError(problem, where=str(path), fix=fix) from error
    except TwinbudError as error:
        raise TwinbudError(error.problem, where=error.where, fix=fix) from error
    if saved not in (None, found):  # tuned teachers of earlier versions have no checksum
        raise TwinbudError("the tuned teacher beside it is not the one that was saved", where=str(path), fix=fix)
    return history


def _tune(job: Job, folder: Path, checkpoints: CheckpointManager, progress: Progress) -> None:
    require_training_memory(
        job.student_pair.student,
        job.device,
        what="fine-tuning",
        where="--tune-teacher",
        fix="Use a smaller teacher or another machine, or leave the teacher as it is with --no-tune-teacher",
    )
    memory, student_pair, training = PeakMemory(job.device), job.student_pair, job.config.training
    start = start_from_probe(job, checkpoints, progress)
    option = "--tune-learning-rate"
    execution = Execution(checkpoints=checkpoints, progress=progress, label=_LABEL, rate_option=option)
    try:
        history = fit_job(job, execution).after(start)
    except TwinbudError as error:
        raise error.at(_LABEL) from error
    with new_folder(folder, force=True) as draft:  # one without TUNING_FILE is damaged
        save_model_folder(
            draft,
            student_pair.student,
            job.initialization.student_spec,
            image_size=training.image_size,
            classes=job.image_index.classes,
            reading=job.config.data.reading,
            task=job.task,
        )
        epochs = to_json(replace(history, peak_memory_mib=memory.mib))
        write_json(draft / TUNING_FILE, sealed({_TEACHER: teacher_fingerprint(f"local-dir:{draft}"), **epochs}))
    gc.collect()  # releases the optimizer's moments


def _key(job: Job) -> str:
    """Return the name of a tuned teacher in the cache: a checksum of all that its weights depend on."""
    identity = run_identity(job) | {"threads": job.config.training.threads}
    del identity["profile"]  # a name for the values of other settings
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:20]


@contextmanager
def _exclusive(folder: Path, checkpoints: CheckpointManager) -> Iterator[None]:
    """Wait until no other process fine-tunes the teacher of this folder.

    Raises:
        Stopped: A stop was requested meanwhile.
    """
    with explained_writes(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_suffix(".lock"))
    while True:
        if checkpoints.stop_requested:
            raise Stopped(
                "stopped while another run fine-tunes the teacher; continue with the same command and --resume"
            )
        try:
            with explained_writes(folder):
                lock.acquire(timeout=_POLL_SECONDS)
            break
        except Timeout:
            continue
    try:
        yield
    finally:
        lock.release()
