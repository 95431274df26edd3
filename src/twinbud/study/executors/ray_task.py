"""One run as a task of a Ray cluster: what a worker receives, does and returns.

Importing this module imports neither Ray nor torch, whose thread pools are sized on import.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinbud.core.cache import cache_folder
from twinbud.core.errors import Stopped, TwinbudError
from twinbud.core.extras import import_extra
from twinbud.core.progress import SilentProgress
from twinbud.study.executors.base import Assignment, Event, RunFailed, RunFinished
from twinbud.study.executors.event_log import StepFilter
from twinbud.study.executors.file_transfer import pack, unpack_once
from twinbud.study.executors.inputs import DecodedRow, decoded_rows, settings_with_paths
from twinbud.study.executors.ray_cluster import RunResources
from twinbud.study.executors.run_loop import settle_run
from twinbud.study.executors.worker import WorkerFailed, set_thread_variables
from twinbud.study.grid import PlannedRun
from twinbud.study.run_id import TRAINING_VERSION
from twinbud.study.store import CorruptRecordError, RunStore

if TYPE_CHECKING:
    from twinbud.runs.resource_cache import ResourceCache


@dataclass(frozen=True)
class InputCopy:
    """A copy of an input in the object store.

    Attributes:
        digest: See ``file_transfer.pack``.
        name: Path of the input, relative to the folder in which the copy is unpacked.
        chunks: References to the chunks of the archive, in order.
    """

    digest: str
    name: str
    chunks: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class RunTask:
    """A run, as a worker receives it.

    Attributes:
        run: The run.
        attempt: Number of the attempt, which its events carry.
        assignment: The assignment with this run only; the path of its store is absolute.
        probe: Name of a file in the claims folder. The store is shared with the driver where the worker sees it.
        is_shared: Whether to work in the driver's store; otherwise in a store of this node, and return the results.
        inputs: Path of each input on the driver's machine; see ``input_paths``.
        copies: Copies of inputs, for workers that do not have their paths.
        resources: What the task has requested.
        training_version: The driver's ``TRAINING_VERSION``.
    """

    run: PlannedRun
    attempt: int
    assignment: Assignment
    probe: str
    is_shared: bool
    inputs: Mapping[str, Path]
    copies: Mapping[str, InputCopy]
    resources: RunResources
    training_version: int = TRAINING_VERSION


@dataclass(frozen=True)
class Settled:
    """The run has a record or has failed, here or in another process; ``event`` tells how, if it was here."""

    event: RunFinished | RunFailed | None


@dataclass(frozen=True)
class Returned:
    """The run has ended in the store of the node: its record or its failure, and its folder as an archive."""

    event: RunFinished | RunFailed
    record: Mapping[str, Any] | None = None
    traceback: str = ""
    folder: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class ClaimedElsewhere:
    """Another process holds the claim of the run."""


@dataclass(frozen=True)
class StoreNotShared:
    """The worker does not see the driver's runs folder."""


@dataclass(frozen=True)
class InputsMissing:
    """The worker has neither the path nor a copy of these inputs, by setting."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class InputsDiffer:
    """The worker has other files at the path of an input; for images also the rows that it found."""

    machine: str
    name: str
    where: str | None
    rows: tuple[DecodedRow, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Interrupted:
    """The task was asked to stop, and has saved the run."""


Outcome = (
    Settled | Returned | ClaimedElsewhere | StoreNotShared | InputsMissing | InputsDiffer | Interrupted | WorkerFailed
)


class EventInbox:
    """An actor that keeps the events of all workers until the driver takes them."""

    def __init__(self) -> None:
        self.events: list[tuple[int, Event]] = []

    def send(self, attempt: int, event: Event) -> None:
        """Add an event of an attempt."""
        self.events.append((attempt, event))

    def take(self) -> list[tuple[int, Event]]:
        """Return all events since the last call, with the numbers of their attempts."""
        events, self.events = self.events, []
        return events


class _EventSender:
    """Sends the events of one attempt, but not every step; keeps the event that ends it."""

    def __init__(self, inbox: Any, attempt: int) -> None:
        self.inbox, self.attempt, self.filter = inbox, attempt, StepFilter()
        self.final: RunFinished | RunFailed | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunFinished | RunFailed):
            self.final = event
        elif self.filter.needs(event):
            self.inbox.send.remote(self.attempt, event)


def execute_task(task: RunTask, inbox: Any) -> Outcome:
    """Execute a run on a worker of the cluster.

    Args:
        task: The run.
        inbox: Handle of the driver's ``EventInbox``.
    """
    set_thread_variables(task.resources.num_cpus)
    machine = platform.node()
    with suppress(Stopped, KeyboardInterrupt):
        try:
            return _execute(task, _EventSender(inbox, task.attempt), machine)
        except TwinbudError as error:
            return WorkerFailed(error.problem, f"node {machine}: {error.where}", error.fix)
    return Interrupted()


def _execute(task: RunTask, send: _EventSender, machine: str) -> Outcome:
    if task.training_version != TRAINING_VERSION:
        problem = f"its twinbud has training version {TRAINING_VERSION}, but the study has {task.training_version}"
        return WorkerFailed(problem, f"node {machine}", "Install the same twinbud on all nodes")
    if task.is_shared and not (task.assignment.store.path / "claims" / task.probe).exists():
        return StoreNotShared()
    if task.is_shared and task.assignment.is_settled(task.run.run_id):
        return Settled(None)
    paths, missing = _locate(task)
    if missing:
        return InputsMissing(missing)
    assignment = replace(
        task.assignment,
        local_settings={**task.assignment.local_settings, **settings_with_paths(task.run.settings, paths)},
        machine=machine,
    )
    resource_cache = _resource_cache()
    if difference := _check_inputs(task.run, assignment, resource_cache, machine):
        return difference
    num_workers = max(1, task.resources.num_fitting(_node_resources()))
    if not task.is_shared:
        return _execute_on_node(task, assignment, resource_cache, send, num_workers)
    if not settle_run(assignment, task.run, resource_cache, send, num_workers):
        return ClaimedElsewhere()
    return Settled(send.final)


def _locate(task: RunTask) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Return the path of each input on this machine, and the inputs that it lacks; unpack copies once a node."""
    ray = import_extra("ray", "cluster", where="--executor ray")

    paths: dict[str, Path] = {}
    missing = []
    for name, path in task.inputs.items():
        copy = task.copies.get(name)
        if path.exists():
            paths[name] = path
        elif copy is None:
            missing.append(name)
        else:
            chunks: Iterator[Any] = map(ray.get, copy.chunks)
            paths[name] = unpack_once(copy.digest, chunks, _cluster_folder() / "inputs") / copy.name
    return paths, tuple(missing)


def _check_inputs(
    run: PlannedRun, assignment: Assignment, resource_cache: ResourceCache, machine: str
) -> InputsDiffer | None:
    """Compare images, teacher and student with those of the plan."""
    from twinbud.config.loading import run_config
    from twinbud.runs.context import open_images
    from twinbud.study.execute import ChangedInputError, require_planned_inputs

    settings = {**run.settings, **assignment.local_settings}
    config = run_config(settings, output=Path("-"), pixel_cache=assignment.pixel_cache)
    try:
        require_planned_inputs(run, config, resource_cache, SilentProgress())
    except ChangedInputError as error:
        if error.name != "images":
            return InputsDiffer(machine, error.name, error.where)
        image_index, image_store = open_images(config, SilentProgress(), resource_cache)
        return InputsDiffer(machine, error.name, error.where, decoded_rows(image_index, image_store.digests))
    return None


def _execute_on_node(
    task: RunTask, assignment: Assignment, resource_cache: ResourceCache, send: _EventSender, num_workers: int
) -> Outcome:
    """Execute the run in a store of this node, where a restarted driver finds its checkpoints."""
    key = hashlib.sha256(str(task.assignment.store.path).encode()).hexdigest()[:20]
    store, run_id = RunStore(_cluster_folder() / "studies" / key), task.run.run_id
    store.create()
    if store.is_done(run_id):
        try:
            store.read(run_id)
        except CorruptRecordError:  # the node was lost while the record was written
            store.set_aside(run_id)
    assignment = replace(assignment, store=store, earlier_failures={})
    if failure := store.read_failure(run_id):  # of an earlier study
        assignment = replace(assignment, earlier_failures={run_id: failure.time})
    if not settle_run(assignment, task.run, resource_cache, send, num_workers):
        return ClaimedElsewhere()
    if isinstance(send.final, RunFailed):
        failure = store.read_failure(run_id)
        return Returned(send.final, traceback=failure.traceback if failure else "")
    return _take_results(store, run_id)


def _take_results(store: RunStore, run_id: str) -> Returned:
    """Return the results of a finished run, and delete them here."""
    from twinbud.study.execute import describe_result

    record, folder, chunks = store.read(run_id), store.run_dir(run_id), list[bytes]()
    pack(folder, sorted(path for path in folder.rglob("*") if path.is_file()), chunks.append)
    store.delete(run_id)
    shutil.rmtree(folder)
    return Returned(RunFinished(run_id, describe_result(record)), record=record, folder=tuple(chunks))


def _cluster_folder() -> Path:
    """Return the folder of inputs and runs of this node, which may be deleted when no study uses the node."""
    return cache_folder() / "cluster"


@functools.cache
def _resource_cache() -> ResourceCache:
    """Return the cache of this worker process, which the tasks that it executes share."""
    from twinbud.runs.resource_cache import ResourceCache

    return ResourceCache()


def _node_resources() -> dict[str, float]:
    """Return what the node of this worker has."""
    ray = import_extra("ray", "cluster", where="--executor ray")

    node_id = ray.get_runtime_context().get_node_id()
    return next((node["Resources"] for node in ray.nodes() if node["NodeID"] == node_id), {})
