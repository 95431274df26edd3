"""Ray's interface without processes: tasks are executed when they are waited for, on nodes that tests describe."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    """Base class of errors, as in Ray."""


class NodeDiedError(RayError):
    """A node was lost."""


class OutOfMemoryError(RayError):
    """A worker was killed, since its node ran out of memory."""


class OutOfDiskError(RayError):
    """The disk of a node is full."""


class WorkerCrashedError(RayError):
    """A worker process died."""


class TaskCancelledError(RayError):
    """A task was cancelled before it started."""


class RayTaskError(RayError):
    """A task raised an error."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class FakeRay:
    """The parts of the module ``ray`` that the executor uses.

    Args:
        resources: Resources of each node.
        execute: Executes a task: receives what the task's function would, and returns its result or raises a
            ``RayError``.
    """

    def __init__(self, resources: list[dict[str, float]], execute: Callable[[Any, Any], Any] | None = None) -> None:
        self.resources, self.execute = resources, execute
        self.objects: list[Any] = []
        self.tasks: dict[int, tuple[Any, Any]] = {}
        self.options: list[dict[str, Any]] = []
        self.cancelled: list[int] = []
        self.exceptions = SimpleNamespace(
            RayError=RayError,
            NodeDiedError=NodeDiedError,
            OutOfMemoryError=OutOfMemoryError,
            OutOfDiskError=OutOfDiskError,
            TaskCancelledError=TaskCancelledError,
            RayTaskError=RayTaskError,
        )
        strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda **arguments: arguments)
        self.util = SimpleNamespace(scheduling_strategies=strategies)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "NodeID": str(i), "Resources": each} for i, each in enumerate(self.resources)]

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "0")

    def put(self, value: Any) -> int:
        self.objects.append(value)
        return len(self.objects) - 1

    def remote(self, what: Any) -> Any:
        return _FakeActor(what, self) if isinstance(what, type) else _FakeFunction(self)

    def wait(self, references: list[int], *, num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        del timeout
        return references[:num_returns], references[num_returns:]

    def get(self, reference: Any) -> Any:
        if callable(reference):
            return reference()
        if reference not in self.tasks:
            return self.objects[reference]
        assert self.execute is not None
        return self.execute(*self.tasks.pop(reference))

    def cancel(self, reference: int, *, force: bool = False) -> None:
        del force
        self.cancelled.append(reference)

    def kill(self, actor: Any) -> None:
        del actor


class _FakeFunction:
    def __init__(self, ray: FakeRay) -> None:
        self.ray = ray

    def options(self, **options: Any) -> _FakeFunction:
        self.ray.options.append(options)
        return self

    def remote(self, *arguments: Any) -> int:
        reference = self.ray.put(None)
        self.ray.tasks[reference] = arguments
        return reference


class _FakeActor:
    def __init__(self, what: Any, ray: FakeRay) -> None:
        self.what, self.ray = what, ray

    def options(self, **options: Any) -> _FakeActor:
        del options
        return self

    def remote(self) -> Any:
        actor = self.what()
        return SimpleNamespace(send=SimpleNamespace(remote=actor.send), take=SimpleNamespace(remote=lambda: actor.take))
