"""A study from its recipe to its records: plan the runs, execute those that are missing, and report the state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from twinbud.config.schema import Profile
from twinbud.core.errors import Stopped, TwinbudError, writes_to
from twinbud.core.progress import Progress, SilentProgress
from twinbud.runs.tuning import TUNING_FILE
from twinbud.study.estimate import Estimate
from twinbud.study.executors.base import Assignment, Event, Executor
from twinbud.study.executors.choice import ExecutorOptions, choose_executor
from twinbud.study.executors.names import ExecutorName
from twinbud.study.grid import PlannedRun, checked_config, parse_only, plan_cells
from twinbud.study.planning import parse_data_paths, plan_runs
from twinbud.study.recipe import Recipe, read_recipe
from twinbud.study.requests import RequestedRun
from twinbud.study.status import OnStatus, StatusTracker
from twinbud.study.store import CorruptRecordError, Failure, RunStore


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """The arguments of a study.

    Attributes:
        recipe: The YAML file.
        runs: The runs folder, created if missing.
        data: ``NAME=PATH`` for each image set.
        only: ``KEY=VALUE,...`` to narrow the recipe's grid.
        profile: Replaces the recipe's profile.
        num_workers: Worker processes; 0 executes the runs in the calling process, None starts as many as the CPU cores
            allow and one a GPU. On a cluster: runs that are executed at the same time, at most.
        executor: Where the runs are executed; see ``ExecutorOptions``.
        address: See there.
        num_gpus: See there.
        slurm: See there.
        keep_models: Whether finished runs keep their trained models.
        pixel_cache: Whether decoded images are cached on the disk for all workers.
    """

    recipe: Path
    runs: Path
    data: Sequence[str] = ()
    only: Sequence[str] = ()
    profile: Profile | None = None
    num_workers: int | None = None
    executor: ExecutorName = "local"
    address: str | None = None
    num_gpus: float | None = None
    slurm: Sequence[str] = ()
    keep_models: bool = False
    pixel_cache: bool = True

    @property
    def executor_options(self) -> ExecutorOptions:
        """The options of the executor."""
        return ExecutorOptions(
            name=self.executor,
            num_workers=self.num_workers,
            address=self.address,
            num_gpus=self.num_gpus,
            slurm=self.slurm,
        )


@dataclass(frozen=True, kw_only=True)
class Study:
    """A planned study, and the state of its runs on the disk.

    Attributes:
        recipe: The recipe.
        profile: The profile that supplies the defaults of all settings.
        store: The runs folder.
        runs: All requested runs, one for each place in the recipe; several can have the same run id.
        image_sets: Description of each image set; see ``RunStore.image_sets``.
        executor: Executes the runs.
        done: Ids of runs with an intact record.
        corrupt: The error of each corrupt record, by run id.
        failures: The last failure of each run without a record, by run id.
    """

    recipe: Recipe
    profile: Profile
    store: RunStore
    runs: tuple[PlannedRun, ...]
    image_sets: Mapping[str, Mapping[str, Any]]
    executor: Executor
    done: frozenset[str] = frozenset()
    corrupt: Mapping[str, CorruptRecordError] = field(default_factory=dict)
    failures: Mapping[str, Failure] = field(default_factory=dict)

    @cached_property
    def distinct(self) -> dict[str, PlannedRun]:
        """Each run once, by run id, in order."""
        return {run.run_id: run for run in self.runs}

    @cached_property
    def missing(self) -> list[PlannedRun]:
        """Runs without a record, in order."""
        return [run for run_id, run in self.distinct.items() if run_id not in self.done]

    @property
    def tuned(self) -> frozenset[str]:
        """Ids of the fine-tuning of finished runs; none where their teachers were deleted."""
        if not any(self.store.teachers.glob(f"*/{TUNING_FILE}")):
            return frozenset()
        return frozenset(run.tuning.tuning_id for run in self.runs if run.tuning and run.run_id in self.done)

    @property
    def num_workers(self) -> int:
        """Number of missing runs that are executed at the same time, at least 1."""
        return max(1, min(self.executor.num_workers, len(self.missing)))


def plan_study(request: StudyRequest, progress: Progress | None = None, *, executor: Executor | None = None) -> Study:
    """Plan a study and read the state of its runs, without writing anything.

    Args:
        request: The arguments.
        progress: Reports the decoding of images.
        executor: Executes the runs; by default processes of this machine, as ``request.num_workers`` says.

    Raises:
        TwinbudError: The recipe, the images, a teacher or the runs folder cannot be used.
    """
    progress = progress or SilentProgress()
    recipe = read_recipe(request.recipe)
    cells = plan_cells(recipe, parse_only(request.only, recipe), request.profile)
    sources = parse_data_paths(request.data, cells)
    store = RunStore(request.runs)
    store.require(must_exist=False)
    executor = executor or choose_executor(request.executor_options, checked_config(cells[0].settings).training)
    runs, image_sets = plan_runs(cells, sources, progress, pixel_cache=request.pixel_cache)
    descriptions = {name: image_set.description for name, image_set in image_sets.items()}
    store.check_images(descriptions)
    study = Study(
        recipe=recipe,
        profile=request.profile or recipe.profile,
        store=store,
        runs=runs,
        image_sets=descriptions,
        executor=executor,
    )
    return refresh_study(study)


@writes_to("--runs")
def execute_study(
    request: StudyRequest,
    study: Study,
    progress: Progress | None = None,
    on_status: OnStatus = lambda status: None,
) -> Study:
    """Execute all missing runs; other processes may work on the same folder.

    Args:
        request: The arguments.
        study: The result of ``plan_study``.
        progress: Reports what happens before the first run.
        on_status: Receives the status several times a second.

    Returns:
        The study with its new state. Failed runs are in ``failures``; the next call tries them again.

    Raises:
        TwinbudError: The folder cannot be written, or another process has started it with other images.
        Stopped: The system requested a stop; the same call resumes.
    """
    progress = progress or SilentProgress()
    _prepare_store(study, progress)
    if not study.missing:
        return refresh_study(study)
    assignment = Assignment(
        store=study.store,
        runs=study.missing,
        earlier_failures={run_id: failure.time for run_id, failure in study.failures.items()},
        threads=checked_config(study.missing[0].settings).training.threads or 1,
        keep_models=request.keep_models,
        pixel_cache=request.pixel_cache,
    )
    tracker = StatusTracker(assignment, num_done=len(study.done), tuned=study.tuned)

    def on_event(event: Event) -> None:
        on_status(tracker.update(event))

    try:
        study.executor.run(assignment, on_event)
    except Stopped as stopped:
        tracker.scan()
        counts = f"{tracker.status.num_done} of {tracker.status.num_runs} runs done"
        raise Stopped(f"stopped with {counts}; the same command resumes the study") from stopped
    return refresh_study(study)


def _prepare_store(study: Study, progress: Progress) -> None:
    """Create the runs folder, write what is requested, and move corrupt records away."""
    store = study.store
    store.create()
    store.register_images(study.image_sets)
    requests = [
        RequestedRun(run_id=run.run_id, profile=study.profile, coordinates=run.coordinates, is_default=run.is_default)
        for run in study.runs
    ]
    store.add_requests(study.recipe.name, study.recipe.digest, requests)
    for run_id, error in study.corrupt.items():
        if target := store.set_aside(run_id):
            progress.note(f"{error.where}: {error.problem}; moved to {target}, and the run is executed again")


def refresh_study(study: Study) -> Study:
    """Read the state of all runs again.

    Raises:
        TwinbudError: A file holds the record of another run, such as one on other images.
    """
    store, done, corrupt, failures = study.store, set(), {}, {}
    done_ids, failed_ids = store.done_ids(), store.failed_ids()
    for run_id in study.distinct:
        if run_id in done_ids:
            try:
                store.read(run_id)
                done.add(run_id)
            except CorruptRecordError as error:
                corrupt[run_id] = error
        elif run_id in failed_ids and (failure := store.read_failure(run_id)):
            failures[run_id] = failure
    return replace(study, done=frozenset(done), corrupt=corrupt, failures=failures)


def estimate_seconds(study: Study, progress: Progress | None = None) -> float:
    """Estimate the time of the missing runs, from measured steps and the number of workers."""
    records = [study.store.read(run_id) for run_id in sorted(study.done)]
    estimate = Estimate(records, progress or SilentProgress(), study.tuned)
    return sum(map(estimate.seconds, study.missing)) / study.num_workers


def require_success(study: Study) -> None:
    """Raise an error if runs have failed, so that the exit code shows it.

    Raises:
        TwinbudError: Runs have failed.
    """
    if study.missing:
        first = next((failure.reason for failure in study.failures.values()), "no reason is recorded")
        raise TwinbudError(
            f"{len(study.missing)} of {len(study.distinct)} runs failed; first: {first.rstrip('.')}",
            where=str(study.store.path / "failures"),
            fix="Correct the causes, and give the same command again: it executes only these runs",
        )
