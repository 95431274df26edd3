"""The connection to a Ray cluster, and what its nodes have."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, TextIO

from twinbud.core.errors import TwinbudError, first_line
from twinbud.core.extras import import_extra

WHERE = "--executor ray"
_START = "Start Ray with 'ray start --head' and 'ray start --address=HOST:6379', or use --executor local"
_CONNECT_SECONDS = 5.0
_ROUNDING = 1e-6


@dataclass(frozen=True)
class RunResources:
    """What one run requests.

    Attributes:
        num_cpus: CPU cores, as many as the run has threads.
        num_gpus: GPUs; a fraction for runs that share one.
    """

    num_cpus: int
    num_gpus: float = 0.0

    def __str__(self) -> str:
        cpus = f"{self.num_cpus} CPU{'s' if self.num_cpus > 1 else ''}"
        return f"{cpus} and {self.num_gpus:g} GPU" if self.num_gpus else cpus

    def num_fitting(self, resources: dict[str, float]) -> int:
        """Return how many runs fit on a node with these resources."""
        by_cpu = int(resources.get("CPU", 0) / self.num_cpus + _ROUNDING)
        if not self.num_gpus:
            return by_cpu
        gpus = resources.get("GPU", 0)
        by_gpu = int(gpus) * int(1 / self.num_gpus + _ROUNDING) if self.num_gpus <= 1 else gpus / self.num_gpus
        return min(by_cpu, int(by_gpu + _ROUNDING))


def check_num_gpus(num_gpus: float | None, device: str) -> None:
    """Refuse a number of GPUs that no run can have.

    Args:
        num_gpus: GPUs of a run; None where the cluster decides.
        device: The setting of the runs.

    Raises:
        TwinbudError: It is negative, more than one and not whole, or 0 for runs that need a GPU.
    """
    if num_gpus is None:
        return
    if not num_gpus >= 0 or (num_gpus > 1 and not float(num_gpus).is_integer()):
        fix = "Give a whole number, or a fraction of one GPU such as 0.25"
        raise TwinbudError(f"{num_gpus:g} is not a number of GPUs", where="--gpus", fix=fix)
    if device == "cuda" and num_gpus == 0:
        fix = "Leave --gpus out, or set the device to cpu"
        raise TwinbudError("runs on the device cuda need a GPU, not 0", where="--gpus", fix=fix)


def connect(address: str | None) -> Any:
    """Connect this process to a running Ray cluster.

    Args:
        address: ``HOST:PORT`` of the head node; None for ``$RAY_ADDRESS``, else the cluster that this machine is in.

    Returns:
        The module ``ray``.

    Raises:
        TwinbudError: Ray is not installed, the cluster cannot be reached or runs another version, or this process is
            connected to another one.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = import_extra("ray", "cluster", where=WHERE, otherwise="use --executor local")
    if ray.is_initialized():
        if address is not None:
            _require_same_cluster(address, ray.get_runtime_context().gcs_address)
        return ray
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    where = f"--address {address}"
    if address != "auto":
        _require_reachable(address, where)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except ConnectionError as error:
        raise TwinbudError("no Ray cluster is running on this machine", where=where, fix=_START) from error
    except Exception as error:  # Ray has no error of its own for a cluster that it cannot join
        if "mismatch" in str(error):
            versions = " ".join(str(error).replace("\t", " ").split())
            fix = "Install the same versions of Ray and Python on all machines"
            problem = f"the cluster runs other versions ({versions.rstrip('.')})"
            raise TwinbudError(problem, where=where, fix=fix) from error
        fix = "Run the command on a node of the cluster, where 'ray status' answers"
        raise TwinbudError(f"the cluster cannot be joined ({first_line(error)})", where=where, fix=fix) from error
    return ray


def _require_same_cluster(address: str, connected: str) -> None:
    """Refuse an address other than that of the cluster that this process is connected to: it cannot be in two."""
    host, _, port = address.rpartition(":")
    connected_host, _, connected_port = connected.rpartition(":")
    hosts = {_ip(host), _ip(connected_host)}
    if port == connected_port and (len(hosts) == 1 or any(ip.startswith("127.") for ip in hosts)):
        return
    problem = f"this process is connected to another Ray cluster, at {connected}"
    raise TwinbudError(problem, where=f"--address {address}", fix="Call ray.shutdown() first, or use another process")


def _ip(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return host


def _require_reachable(address: str, where: str) -> None:
    """Try the port, since Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        fix = "Give HOST:PORT, on a node of the cluster; from elsewhere, use 'ray job submit'"
        raise TwinbudError(f"'{address}' is not HOST:PORT", where="--address", fix=fix)
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise TwinbudError(f"the Ray cluster cannot be reached ({reason})", where=where, fix=_START) from error


def alive_nodes(ray: Any) -> list[dict[str, Any]]:
    """Return what Ray tells of each living node."""
    return [node for node in ray.nodes() if node["Alive"]]


def num_fitting(ray: Any, resources: RunResources) -> int:
    """Return how many runs fit on the cluster at the same time."""
    return sum(resources.num_fitting(node["Resources"]) for node in alive_nodes(ray))


def require_room(ray: Any, resources: RunResources) -> None:
    """Refuse a cluster on which no run can start.

    Raises:
        TwinbudError: No living node has the resources of a run; the error says what the nodes have.
    """
    if num_fitting(ray, resources) > 0:
        return
    found = Counter(
        f"{node['Resources'].get('CPU', 0):g} CPU and {node['Resources'].get('GPU', 0):g} GPU"
        for node in alive_nodes(ray)
    )
    nodes = "; ".join(f"{count} with {text}" for text, count in found.most_common())
    problem = f"a run needs {resources}, which no node of the cluster has (nodes: {nodes or 'none'})"
    fix = "Add such a node, or lower --gpus or the recipe's threads"
    raise TwinbudError(problem, where=WHERE, fix=fix)


def has_gpus(ray: Any) -> bool:
    """Return whether a living node has a GPU."""
    return any(node["Resources"].get("GPU", 0) for node in alive_nodes(ray))


def describe_loss(ray: Any, error: Exception) -> str:
    """Return why a task has no result, as a clause about its run."""
    if isinstance(error, ray.exceptions.NodeDiedError):
        return "its node was lost"
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "Ray ended its worker process, since its node ran out of memory"
    if isinstance(error, ray.exceptions.OutOfDiskError):
        return "the disk of its node is full"
    return f"its worker process died ({first_line(error)})"


@contextmanager
def without_ray_output() -> Iterator[None]:
    """Drop what a thread of Ray prints about lost nodes while the context is open: events of the study report it."""
    with redirect_stdout(_WithoutRay(sys.stdout)):  # type: ignore[type-var]
        yield


class _WithoutRay:
    """Standard output without what threads of Ray write."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        is_ray = threading.current_thread().name.startswith("ray_")
        return len(text) if is_ray else self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
