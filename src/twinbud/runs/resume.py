"""Resume a run: each phase has its own checkpoints and continues from the newest intact one."""

from __future__ import annotations

from typing import Any

from twinbud.config.effects import numeric_settings
from twinbud.config.schema import RunConfig
from twinbud.config.teaching import TeachConfig
from twinbud.core.progress import Progress
from twinbud.data.split import fingerprint
from twinbud.models.teacher_fingerprint import teacher_fingerprint
from twinbud.recovery.stage import students_to_recover
from twinbud.runs.context import Job
from twinbud.runs.run_dir import CHECKPOINTS
from twinbud.training.checkpoint import Checkpoint, CheckpointFolder, saved_identity
from twinbud.training.checkpoint_manager import CheckpointManager
from twinbud.training.phases import FIRST_PHASE, PHASES, RECOVERY_PHASES, TUNING_PHASE


def run_identity(job: Job) -> dict[str, Any]:
    """Return all that the weights of a run depend on, as plain JSON, except the number of threads."""
    identity = numeric_settings(job.config) | {
        "precision": job.precision.name,
        "compile": "inductor" if job.compilation.inductor else "none",  # a CUDA graph repeats the same operations
        "images": fingerprint(job.image_index, job.image_store.digests, job.split),
        "initial weights": job.initialization.fingerprint(),
    }
    if job.teacher is not None and job.config.training.learns_from_teacher:
        identity["teacher"] = teacher_fingerprint(job.teacher.name)
    return identity


def open_tuning_checkpoints(job: Job, progress: Progress) -> CheckpointManager:
    """Open the checkpoints of the fine-tuning of the teacher; load the newest intact one if the run is resumed."""
    checkpoints = CheckpointFolder(job.config.output / CHECKPOINTS / TUNING_PHASE, run_identity(job))
    found = newest_checkpoint(checkpoints, job.config, progress, "fine-tuning the teacher")
    return CheckpointManager(checkpoints, found, job.config.checkpoint_seconds, save_last=True)


def open_checkpoint_manager(job: Job, progress: Progress) -> CheckpointManager:
    """Open the checkpoints of recovery and training; load the newest intact ones if the run is resumed."""
    identity = run_identity(job)
    folder, seconds = job.config.output / CHECKPOINTS, job.config.checkpoint_seconds
    phases = {}
    if job.config.recovery.recover != "none":
        phases = {
            RECOVERY_PHASES[pair_role]: f"recovery of the {pair_role}"
            for pair_role in students_to_recover(job.student_pair)
        }
    if job.config.training.num_phases == 2:
        phases[FIRST_PHASE] = "training the auxiliary"
    managers = {}
    for phase, text in phases.items():
        checkpoints = CheckpointFolder(folder / phase, identity)
        found = newest_checkpoint(checkpoints, job.config, progress, text)
        managers[phase] = CheckpointManager(checkpoints, found, seconds, save_last=True)
    checkpoints = CheckpointFolder(folder, identity)
    return CheckpointManager(
        checkpoints, newest_checkpoint(checkpoints, job.config, progress), seconds, phases=managers
    )


def newest_checkpoint(
    checkpoints: CheckpointFolder,
    config: RunConfig | TeachConfig,
    progress: Progress,
    phase: str = "training the student",
) -> Checkpoint | None:
    """Return the newest intact checkpoint of a phase; None if there is none or the run is not resumed.

    Args:
        checkpoints: Checkpoints of the phase.
        config: Settings of the run.
        progress: Shows damaged checkpoints and the step from which the phase continues.
        phase: Name of the phase in these notes.
    """
    if not config.resume:
        return None
    found, problems = checkpoints.latest()
    start = f"going on after step {found.position.num_steps}" if found else "no checkpoint: from the start"
    for text in (*problems, f"{phase}: {start}"):
        progress.note(text)
    return found


def previous_precision(config: RunConfig | TeachConfig) -> str | None:
    """Return the precision of the run to resume; None if it has no checkpoint or the run is not resumed."""
    folder = config.output / CHECKPOINTS
    phases = (folder, *(folder / phase for phase in PHASES)) if config.resume else ()
    return next((identity.get("precision") for phase in phases if (identity := saved_identity(phase))), None)
