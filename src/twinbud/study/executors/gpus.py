"""The GPUs of this machine: which one a worker uses, and how many runs share one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from twinbud.core.errors import TwinbudError
from twinbud.study.grid import PlannedRun, checked_config

VISIBLE = "CUDA_VISIBLE_DEVICES"
_CONTEXT_MIB = 600.0
"""What a process takes of a GPU beside its tensors: the context of CUDA and the workspaces of its libraries."""
_USABLE_SHARE = 0.9
"""Share of the memory that runs may need together; the rest covers what six steps do not show."""


def list_gpus() -> tuple[str, ...]:
    """Return the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` spells each."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return tuple(named[:count]) if named else tuple(str(index) for index in range(count))


def assign_gpus(num_workers: int, gpus: Sequence[str]) -> tuple[str, ...]:
    """Return the GPU of each worker; GPUs get one more worker each in turn.

    >>> assign_gpus(3, ["0", "1"])
    ('0', '1', '0')
    """
    return tuple(gpus[index % len(gpus)] for index in range(num_workers))


def require_shared_memory(runs: Iterable[PlannedRun], num_workers: int, gpus: Sequence[str]) -> None:
    """Refuse more workers than fit into the memory of the GPUs. The need of a run is measured in six training steps.

    Args:
        runs: The runs.
        num_workers: How many are executed at the same time.
        gpus: The GPUs.

    Raises:
        TwinbudError: The runs that share a GPU need more memory than the smallest one has.
    """
    per_gpu = -(-num_workers // len(gpus))
    if per_gpu <= 1:
        return
    needed, capacity = _CONTEXT_MIB + measure_peak_mib(runs), _smallest_gpu_mib(len(gpus))
    if per_gpu * needed <= _USABLE_SHARE * capacity:
        return
    fitting = max(1, int(_USABLE_SHARE * capacity / needed)) * len(gpus)
    raise TwinbudError(
        f"{num_workers} workers put {per_gpu} runs on a GPU, and a run needs {needed:.0f} MiB (measured), but a GPU has"
        f" {capacity:.0f} MiB",
        where="--workers",
        fix=f"Give at most --workers {fitting}",
    )


def measure_peak_mib(runs: Iterable[PlannedRun]) -> float:
    """Take a few steps of one run of each shape, and return the largest memory that torch reserved, in MiB."""
    import torch

    from twinbud.study.estimate import measure_step, step_key

    peaks = []
    for run in {step_key(run.facts): run for run in runs}.values():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        measure_step(checked_config(run.settings))
        peaks.append(torch.cuda.max_memory_reserved() / 2**20)
        torch.cuda.empty_cache()
    return max(peaks, default=0.0)


def _smallest_gpu_mib(count: int) -> float:
    import torch

    return min(torch.cuda.get_device_properties(index).total_memory for index in range(count)) / 2**20
