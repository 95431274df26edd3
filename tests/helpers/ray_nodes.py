"""A Ray cluster on this machine, whose nodes are processes that tests start and end by their handles."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

STORE_BYTES = 80 * 2**20
VARIABLES = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
"""No telemetry; and workers wait for no other program: by default their priority is low."""
_NODE: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": STORE_BYTES}
_HIDING = ("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")


@contextmanager
def ray_cluster(**head: Any) -> Iterator[Any]:
    """Yield a ``ray.cluster_utils.Cluster`` with a head node of one CPU; all nodes end with the context."""
    os.environ |= VARIABLES
    ray = import_module("ray")
    handler = signal.getsignal(signal.SIGTERM)  # a driver replaces it
    head_node = {**_NODE, "include_dashboard": False, **head}
    cluster = import_module("ray.cluster_utils").Cluster(initialize_head=True, head_node_args=head_node)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        signal.signal(signal.SIGTERM, handler)


def add_node(cluster: Any) -> Any:
    """Start a node with one CPU, and wait until the cluster has it."""
    return cluster.add_node(**_NODE)


def lose_node(cluster: Any, node: Any) -> None:
    """Kill all processes of a node."""
    cluster.remove_node(node, allow_graceful=False)


def can_hide_folders() -> bool:
    """Whether this machine lets a process have mounts of its own."""
    try:
        return subprocess.run([*_HIDING, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0
    except OSError:
        return False


@contextmanager
def node_without(folder: Path, cluster: Any, cache: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a node that sees an empty folder in place of ``folder``, and has a cache folder of its own.

    Yields:
        The process; all others of the node end with it.
    """
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={cluster.address}"]
    words += ["--num-cpus=1", "--num-gpus=0", f"--object-store-memory={STORE_BYTES}"]
    command = [*_HIDING, "sh", "-c", 'mount -t tmpfs none "$1" && shift && exec "$@"', "sh", str(folder), *words]
    variables = {**os.environ, "TWINBUD_CACHE": str(cache)}
    log = cache.with_suffix(".log")
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        while "Ray runtime started" not in log.read_text(encoding="utf-8", errors="replace"):
            assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def task_processes(parent: int, label: str) -> set[int]:
    """Ids of the processes below ``parent`` that execute a run whose label starts with ``label``."""
    found = set()
    for process in psutil.Process(parent).children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(f"ray::{label}"):
                found.add(process.pid)
    return found


def wait_until_ended(pids: set[int], seconds: float = 60) -> list[str]:
    """Wait until the processes have ended; describe those that have not."""
    deadline = time.monotonic() + seconds
    while (left := [text for text in map(_describe, pids) if text]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _describe(pid: int) -> str:
    """Return what a process is, or an empty string if it has ended."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:  # its parent, a node, does not ask for its exit code at once
            return ""
        return f"{pid}: {' '.join(process.cmdline())} ({process.status()})"
    except psutil.NoSuchProcess:
        return ""
