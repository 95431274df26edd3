"""The Ray executor: each run is a task of a Ray cluster, and is tried again when its worker is lost.

Where the workers see the runs folder, they claim runs and write records there, and a retried run resumes from its last
checkpoint. Otherwise this process holds the claims, and the results come back through Ray's object store.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections import Counter, deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

from twinbud.core.errors import Stopped, TwinbudError, explained_writes, first_line
from twinbud.core.files import new_folder
from twinbud.core.signals import stop_on_signal
from twinbud.study.executors import ray_cluster, ray_task
from twinbud.study.executors.base import (
    Assignment,
    OnEvent,
    RunFailed,
    RunInterrupted,
    Waiting,
)
from twinbud.study.executors.file_transfer import unpack
from twinbud.study.executors.inputs import input_paths
from twinbud.study.executors.ray_cluster import WHERE, RunResources
from twinbud.study.executors.ray_inputs import InputCopies, input_difference
from twinbud.study.executors.ray_task import RunTask
from twinbud.study.executors.worker import WorkerFailed
from twinbud.study.grid import PlannedRun

_POLL_SECONDS = 0.25
_CLAIMED_SECONDS = 2.0
"""Time until a run that another process has claimed is tried again."""
_SCAN_SECONDS = 5.0
"""Time between two looks at the nodes of the cluster."""
_NO_NODE_SECONDS = 60.0
"""How long to wait for a node on which a run fits, after the last one was lost."""
_SAVE_SECONDS = 30.0
"""How long runs in progress may take to save themselves when a stop is requested."""
_MAX_DEATHS = 3
"""A run whose worker process has died this often has failed."""
_MAX_LOST_NODES = 10
"""A run whose node was lost this often has failed; a node can be lost without its fault."""


class RayExecutor:
    """Executes runs as tasks of a running Ray cluster.

    Args:
        address: ``HOST:PORT`` of the head node; None for the cluster that this machine is in.
        threads: CPU threads of a run.
        num_gpus: GPUs of a run, or a fraction of one; None for one if ``device`` allows it and the cluster has GPUs.
        device: The setting of the runs.
        max_runs: Number of runs that are executed at the same time, at most; None for as many as fit on the cluster.

    Raises:
        TwinbudError: Ray is not installed, the cluster cannot be reached, or no run fits on one of its nodes.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        threads: int,
        num_gpus: float | None = None,
        device: str = "auto",
        max_runs: int | None = None,
    ) -> None:
        if max_runs is not None and max_runs < 1:
            raise TwinbudError(f"{max_runs} is not a number of runs", where="--workers", fix="Give 1 or more")
        ray_cluster.check_num_gpus(num_gpus, device)
        self.ray = ray_cluster.connect(address)
        if num_gpus is None:
            num_gpus = float(device == "cuda" or (device == "auto" and ray_cluster.has_gpus(self.ray)))
        self.resources = RunResources(threads, num_gpus)
        self.max_runs = max_runs
        ray_cluster.require_room(self.ray, self.resources)

    @property
    def num_workers(self) -> int:
        """Number of runs that are executed at the same time, at most."""
        fitting = max(1, ray_cluster.num_fitting(self.ray, self.resources))
        return fitting if self.max_runs is None else min(fitting, self.max_runs)

    def run(self, assignment: Assignment, on_event: OnEvent) -> None:
        """Return when every run has a record or has failed; see ``Executor.run``."""
        with ray_cluster.without_ray_output():
            _TaskSupervisor(self.ray, assignment, self.resources, self.max_runs, on_event).run()


@dataclass(eq=False)
class _Attempt:
    """A task of the cluster, queued or in progress.

    Attributes:
        run: The run.
        number: Number of the attempt.
        claim: Holds the claim of a run whose worker does not see the runs folder.
    """

    run: PlannedRun
    number: int
    claim: ExitStack


class _TaskSupervisor:
    """Submits tasks, forwards their events, takes their results, and submits those again that are lost."""

    def __init__(
        self, ray: Any, assignment: Assignment, resources: RunResources, max_runs: int | None, on_event: OnEvent
    ) -> None:
        self.ray, self.resources, self.max_runs, self.on_event = ray, resources, max_runs, on_event
        local_settings = {} if resources.num_gpus else {"device": "cpu"}
        store = replace(assignment.store, path=assignment.store.path.absolute())
        self.assignment = replace(assignment, store=store, local_settings=local_settings)
        self.store = store
        self.pending = deque(assignment.runs)
        self.claimed_elsewhere: dict[str, tuple[float, PlannedRun]] = {}
        """Time of the next attempt, and the run, by run id."""
        self.attempts: dict[Any, _Attempt] = {}
        """Attempts that have not ended, by the reference of their result."""
        self.num_attempts = 0
        self.num_deaths, self.num_lost_nodes = Counter[str](), Counter[str]()
        self.copies = InputCopies(ray)
        self.is_shared = True
        """Whether workers are asked to work in the runs folder; until the first one does not see it."""
        self.probe = f"driver-{uuid.uuid4().hex}.lock"
        self.stop_requested = False
        self.max_attempts, self.next_scan, self.last_fitting = 1, 0.0, time.monotonic()

    def run(self) -> None:
        probe = self.store.path / "claims" / self.probe
        with explained_writes(probe, "--runs"):
            probe.touch()
        self.task = self.ray.remote(ray_task.execute_task)
        with stop_on_signal(self._request_stop):
            self.inbox = self._start_inbox()
            try:
                while (self.attempts or self.pending or self.claimed_elsewhere) and not self.stop_requested:
                    self._submit()
                    self._poll()
            finally:
                self._stop_attempts()
                self.ray.kill(self.inbox)
                probe.unlink(missing_ok=True)
        if self.stop_requested:
            raise Stopped("a signal stopped the tasks")

    def _request_stop(self) -> None:
        self.stop_requested = True

    def _start_inbox(self) -> Any:
        """Start the actor that receives the events, on the node of this process: it is lost with this process only."""
        here = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            node_id=self.ray.get_runtime_context().get_node_id(), soft=False
        )
        return self.ray.remote(ray_task.EventInbox).options(num_cpus=0, scheduling_strategy=here).remote()

    def _submit(self) -> None:
        """Submit runs until the cluster is full and has some to go on with, which also tell an autoscaler to grow."""
        self._scan_nodes()
        now = time.monotonic()
        for run_id, (retry_time, run) in list(self.claimed_elsewhere.items()):
            if retry_time <= now:
                del self.claimed_elsewhere[run_id]
                self.pending.append(run)
        while self.pending and len(self.attempts) < self.max_attempts:
            run = self.pending.popleft()
            if self.assignment.is_settled(run.run_id):
                continue
            claim = ExitStack()
            if not self.is_shared and not claim.enter_context(self.store.claim(run.run_id)):
                claim.close()
                self._wait_for_claim(run)
                continue
            self._submit_run(run, claim)

    def _submit_run(self, run: PlannedRun, claim: ExitStack) -> None:
        self.num_attempts += 1
        inputs = input_paths(run.settings)
        failures = self.assignment.earlier_failures
        task = RunTask(
            run=run,
            attempt=self.num_attempts,
            assignment=replace(
                self.assignment,
                runs=(run,),
                earlier_failures={run.run_id: failures[run.run_id]} if run.run_id in failures else {},
            ),
            probe=self.probe,
            is_shared=self.is_shared,
            inputs=inputs,
            copies=self.copies.select(inputs),
            resources=self.resources,
        )
        options = {"num_cpus": self.resources.num_cpus, "num_gpus": self.resources.num_gpus, "max_retries": 0}
        reference = self.task.options(**options, name=run.label).remote(task, self.inbox)
        self.attempts[reference] = _Attempt(run, self.num_attempts, claim)

    def _scan_nodes(self) -> None:
        """Count the runs that fit on the cluster, whose nodes come and go.

        Raises:
            TwinbudError: No node with room for a run is left.
        """
        now = time.monotonic()
        if now < self.next_scan:
            return
        self.next_scan = now + _SCAN_SECONDS
        fitting = ray_cluster.num_fitting(self.ray, self.resources)
        if fitting:
            self.last_fitting = now
        elif now - self.last_fitting > _NO_NODE_SECONDS:
            ray_cluster.require_room(self.ray, self.resources)
        self.max_attempts = max(1, fitting + max(fitting, 4)) if self.max_runs is None else self.max_runs

    def _wait_for_claim(self, run: PlannedRun) -> None:
        self.claimed_elsewhere[run.run_id] = time.monotonic() + _CLAIMED_SECONDS, run

    def _poll(self) -> None:
        """Forward the events that have arrived, and take the results of tasks that have ended."""
        references, ready = list(self.attempts), []
        if references:
            self.ray.wait(references, num_returns=1, timeout=_POLL_SECONDS)
            ready, _ = self.ray.wait(references, num_returns=len(references), timeout=0)
        else:
            time.sleep(_POLL_SECONDS)
        self._forward_events()
        for reference in ready:
            attempt = self.attempts.pop(reference)
            with attempt.claim:
                self._take_result(attempt.run, reference)
        self.on_event(Waiting())

    def _forward_events(self) -> None:
        numbers = {attempt.number for attempt in self.attempts.values()}
        try:
            events = self.ray.get(self.inbox.take.remote())
        except self.ray.exceptions.RayError:  # its process was killed; tasks in progress go on without events
            self.inbox, events = self._start_inbox(), []
        for number, event in events:
            if number in numbers:
                self.on_event(event)

    def _take_result(self, run: PlannedRun, reference: Any) -> None:
        errors = self.ray.exceptions
        try:
            outcome = self.ray.get(reference)
        except errors.RayTaskError as error:
            fix = "Install the same twinbud, with its extra 'cluster', on all nodes"
            cause = first_line(error.cause) if isinstance(error.cause, Exception) else first_line(error)
            raise TwinbudError(f"a worker cannot execute runs ({cause})", where=WHERE, fix=fix) from error
        except errors.TaskCancelledError:
            self.pending.append(run)
        except errors.RayError as error:
            self._report_loss(run, error)
        else:
            self._take_outcome(run, outcome)

    def _take_outcome(self, run: PlannedRun, outcome: ray_task.Outcome) -> None:
        match outcome:
            case ray_task.Settled(event):
                if event is not None:
                    self.on_event(event)
                elif not self.assignment.is_settled(run.run_id):  # a network file system shows the record later
                    self._wait_for_claim(run)
            case ray_task.Returned():
                self._save_results(run, outcome)
                self.on_event(outcome.event)
            case ray_task.ClaimedElsewhere():
                self._wait_for_claim(run)
            case ray_task.StoreNotShared():
                self.is_shared = False
                self.pending.appendleft(run)
            case ray_task.InputsMissing(names):
                for name in names:
                    self.copies.add(name, run.settings)
                self.pending.appendleft(run)
            case ray_task.InputsDiffer():
                raise input_difference(run, outcome)
            case ray_task.Interrupted():
                self.pending.append(run)
            case WorkerFailed(problem, where, fix):
                raise TwinbudError(problem, where=where, fix=fix)

    def _save_results(self, run: PlannedRun, returned: ray_task.Returned) -> None:
        """Write what a worker without the runs folder has returned; this process holds the claim of the run."""
        if isinstance(returned.event, RunFailed):
            self.store.record_failure(run.run_id, returned.event.reason, returned.traceback)
            return
        assert returned.record is not None
        folder = self.store.run_dir(run.run_id)
        shutil.rmtree(folder, ignore_errors=True)
        with explained_writes(folder), new_folder(folder) as draft:
            unpack(returned.folder, draft)
        self.store.write(run.run_id, returned.record)

    def _report_loss(self, run: PlannedRun, error: Exception) -> None:
        """Try the run of a lost worker again, unless that has happened too often."""
        has_lost_node = isinstance(error, self.ray.exceptions.NodeDiedError)
        counts, limit = (self.num_lost_nodes, _MAX_LOST_NODES) if has_lost_node else (self.num_deaths, _MAX_DEATHS)
        reason = ray_cluster.describe_loss(self.ray, error)
        counts[run.run_id] += 1
        self.on_event(RunInterrupted(run.run_id, reason))
        if counts[run.run_id] < limit:
            self.pending.appendleft(run)
            return
        reason = f"{limit} times, {reason}"
        self.store.record_failure(run.run_id, reason)
        self.on_event(RunFailed(run.run_id, reason))

    def _stop_attempts(self) -> None:
        """End all tasks; runs in progress are saved, and finished ones are taken, if time allows."""
        self.pending.clear()
        for reference in self.attempts:
            self.ray.cancel(reference)
        deadline = time.monotonic() + _SAVE_SECONDS
        while self.attempts and time.monotonic() < deadline:
            with suppress(TwinbudError, self.ray.exceptions.RayError):
                self._poll()
        for reference, attempt in self.attempts.items():
            self.ray.cancel(reference, force=True)
            attempt.claim.close()
        self.attempts.clear()
