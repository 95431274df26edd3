"""The phases of a run, each with checkpoints of its own, and where each of them goes on after a stop."""

from __future__ import annotations

from twinbud.config.loading import numeric_settings
from twinbud.config.schema import RunConfig
from twinbud.core.progress import Progress
from twinbud.data.split import fingerprint
from twinbud.recovery.stage import NAMES, students_to_recover
from twinbud.runs.context import Job
from twinbud.runs.run_dir import CHECKPOINTS
from twinbud.training.checkpoint import Checkpoint, CheckpointFolder, saved_identity
from twinbud.training.checkpoint_manager import CheckpointManager
from twinbud.training.phases import FIRST_PHASE, PHASES, RECOVERY_PHASES


def open_checkpoint_manager(job: Job, progress: Progress) -> CheckpointManager:
    """Where the run's checkpoints are, of every phase, with the newest whole ones if it is resumed."""
    identity = numeric_settings(job.config) | {
        "precision": job.precision.name,
        "compile": job.compilation.name,
        "images": fingerprint(job.image_index, job.image_store.digests, job.split),
        "initial weights": job.initialization.fingerprint(),
    }
    folder, seconds = job.config.output / CHECKPOINTS, job.config.checkpoint_seconds
    phases = {}
    if job.teacher is not None:
        phases = {
            RECOVERY_PHASES[pair_role]: f"recovery of {NAMES[pair_role]}"
            for pair_role in students_to_recover(job.student_pair)
        }
    if job.config.training.num_phases == 2:
        phases[FIRST_PHASE] = "training S′ beforehand"
    earlier = {}
    for phase, text in phases.items():
        checkpoints = CheckpointFolder(folder / phase, identity)
        found = newest_checkpoint(checkpoints, job.config, progress, text)
        earlier[phase] = CheckpointManager(checkpoints, found, seconds, save_last=True)
    checkpoints = CheckpointFolder(folder, identity)
    return CheckpointManager(checkpoints, newest_checkpoint(checkpoints, job.config, progress), seconds, phases=earlier)


def newest_checkpoint(
    checkpoints: CheckpointFolder, config: RunConfig, progress: Progress, phase: str = "training S"
) -> Checkpoint | None:
    """What a phase of a resumed run goes on from, if there is anything; other runs begin anew."""
    if not config.resume:
        return None
    found, complaints = checkpoints.latest()
    place = f"going on after step {found.position.num_steps}" if found else "no checkpoint: from the start"
    for text in (*complaints, f"{phase}: {place}"):
        progress.note(text)
    return found


def precision_so_far(config: RunConfig) -> str | None:
    """What a run that goes on was computed in, if it left a checkpoint."""
    folder = config.output / CHECKPOINTS
    phases = (folder, *(folder / phase for phase in PHASES)) if config.resume else ()
    return next((identity.get("precision") for phase in phases if (identity := saved_identity(phase))), None)
