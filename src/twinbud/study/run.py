"""A study from its recipe to its records: what is asked for, what is done already, and the doing of the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from twinbud.config.schema import Profile
from twinbud.core.errors import TwinbudError
from twinbud.core.progress import Progress, SilentProgress
from twinbud.study.estimate import Estimate
from twinbud.study.executors.local import Watch, Workers, share_cores
from twinbud.study.executors.worker import Assignment
from twinbud.study.grid import PlannedRun, checked_config, plan_cells, read_choices
from twinbud.study.planning import plan_runs, read_places
from twinbud.study.recipe import Recipe, read_recipe
from twinbud.study.store import CorruptRecordError, RunStore
from twinbud.training.amp import choose_device


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """What a study is asked to do.

    Attributes:
        recipe: The YAML file.
        runs: The runs folder, made if it is not there.
        data: ``NAME=PATH`` of each named set of images.
        only: ``KEY=VALUE,...``, which narrow the recipe's grid.
        profile: Instead of the recipe's own.
        num_workers: Runs at once; None for as many as the cores carry, and one on a GPU.
        keep_models: Whether finished runs keep their trained models.
        pixel_cache: Whether decoded images are kept in the cache folder, for all workers.
    """

    recipe: Path
    runs: Path
    data: Sequence[str] = ()
    only: Sequence[str] = ()
    profile: Profile | None = None
    num_workers: int | None = None
    keep_models: bool = False
    pixel_cache: bool = True


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study as it stands on the disk.

    Attributes:
        recipe: What was read.
        folder: Where the runs are.
        runs: All that was asked for, one for each place in the recipe; some may be the same run.
        sets: Of each named set of images, what it is; see ``RunStore.images``.
        shares: The cores of each worker.
        done: Identities with a whole record.
        corrupt: Identities whose record is not what was written, and why.
        failures: Of runs without a record that failed when they were last tried, when and why.
    """

    recipe: Recipe
    folder: RunStore
    runs: tuple[PlannedRun, ...]
    sets: Mapping[str, Mapping[str, Any]]
    shares: tuple[tuple[int, ...], ...]
    done: frozenset[str] = frozenset()
    corrupt: Mapping[str, CorruptRecordError] = field(default_factory=dict)
    failures: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def distinct(self) -> dict[str, PlannedRun]:
        """Each run once, in order."""
        return {run.run_id: run for run in self.runs}

    @property
    def missing(self) -> list[PlannedRun]:
        """Runs without a record, in order."""
        return [run for run_id, run in self.distinct.items() if run_id not in self.done]


def plan_study(order: StudyRequest, progress: Progress | None = None) -> Study:
    """What the study would do, and how far it is; nothing is written.

    Raises:
        TwinbudError: A recipe, images, a teacher or a runs folder that cannot be used.
    """
    progress = progress or SilentProgress()
    recipe = read_recipe(order.recipe)
    cells = plan_cells(recipe, read_choices(order.only, recipe), order.profile)
    places = read_places(order.data, cells)
    folder = RunStore(order.runs)
    folder.require(begun=False)
    training = checked_config(cells[0].settings).training
    on_gpu = choose_device(training.device).type == "cuda"
    shares = share_cores(order.num_workers, training.threads or 1, on_gpu=on_gpu)
    runs, sets = plan_runs(cells, places, progress, pixel_cache=order.pixel_cache)
    described = {name: images.description for name, images in sets.items()}
    folder.check_images(described)
    return as_it_stands(Study(recipe=recipe, folder=folder, runs=runs, sets=described, shares=shares))


def execute_study(
    order: StudyRequest, study: Study, progress: Progress | None = None, watch: Watch = lambda status: None
) -> Study:
    """Do all runs that are missing, together with whoever else works on the same folder.

    Args:
        order: What to do.
        study: What ``plan_study`` made of it.
        progress: Where to report what comes before the first run.
        watch: Told how far the runs are, a few times a second.

    Returns:
        The study as it then stands; runs that failed are in ``failures``, and are tried again by the next call.

    Raises:
        TwinbudError: The folder may not be written, or another process has begun it with other images.
        Stopped: The system asked for a stop; the same call goes on from there.
    """
    progress = progress or SilentProgress()
    folder, profile = study.folder, order.profile or study.recipe.profile
    folder.create()
    folder.agree_on_images(study.sets)
    requested = [
        {
            "identity": run.run_id,
            "profile": profile,
            "coordinates": dict(run.coordinates),
            "is_default": run.is_default,
        }
        for run in study.runs
    ]
    folder.ask_for(study.recipe.name, study.recipe.digest, requested)
    for run_id, error in study.corrupt.items():
        if place := folder.set_aside(run_id):
            progress.note(f"{error.where}: {error.got}; set aside as {place}, and made again")
    if study.missing:
        assignment = Assignment(
            folder=folder,
            runs=study.missing,
            failures={run_id: when for run_id, (when, _) in study.failures.items()},
            cores=(),
            threads=checked_config(study.missing[0].settings).training.threads or 1,
            num_workers=len(study.shares),
            keep_models=order.keep_models,
            pixel_cache=order.pixel_cache,
        )
        Workers(assignment, study.shares[: len(study.missing)], watch).run()
    return as_it_stands(study)


def as_it_stands(study: Study) -> Study:
    """The same study after another look at its folder.

    Raises:
        TwinbudError: A record of another run, such as one on other images.
    """
    folder, done, corrupt = study.folder, set(), {}
    for run_id in study.distinct:
        if not folder.is_done(run_id):
            continue
        try:
            folder.read(run_id)
            done.add(run_id)
        except CorruptRecordError as error:
            corrupt[run_id] = error
    failures = {run_id: folder.failure(run_id) for run_id in study.distinct if run_id not in done}
    return replace(
        study,
        done=frozenset(done),
        corrupt=corrupt,
        failures={run_id: failure for run_id, failure in failures.items() if failure},
    )


def estimate_seconds(study: Study, progress: Progress | None = None) -> float:
    """About how long the missing runs will take, from measured steps and this call's workers."""
    records = [study.folder.read(run_id) for run_id in sorted(study.done)]
    estimate = Estimate(records, progress or SilentProgress())
    return sum(map(estimate.seconds, study.missing)) / max(1, min(len(study.shares), len(study.missing)))


def require_success(study: Study) -> None:
    """Say that runs have failed, for whoever reads exit codes only.

    Raises:
        TwinbudError: Some have.
    """
    if study.missing:
        raise TwinbudError(
            f"all of {len(study.distinct)} runs to end well",
            got=f"{len(study.missing)} that failed",
            where=str(study.folder.path / "failures"),
            fix="Put right what they say, and give the same command again: it does those only",
        )
