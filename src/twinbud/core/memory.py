"""Free memory, and the peak of what a stage takes."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import torch

from twinbud.core.launch import launched

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_CONTAINER = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device) -> int:
    """Return the free memory of the GPU, or of the machine but no more than its container may still take.

    Memory that torch holds on a GPU without using it counts as free, and so do files that the system keeps in memory.
    Processes of one command on one machine get equal parts of its memory.
    """
    import psutil  # not above: on Linux it needs modules that other systems lack

    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError, StopIteration):  # no container, or one without a limit
        limit, used = (
            int((_CONTAINER / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current")
        )
        lines = (_CONTAINER / "memory.stat").read_text(encoding="ascii").splitlines()
        files = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        free = min(free, max(0, limit - used + files))
    launch = launched()
    return free // launch.local_count if launch else free


class PeakMemory:
    """Peak memory since construction, in MiB: the process's resident set on a CPU, allocated memory on a GPU.

    Only Linux can reset the peak of a process; elsewhere it is the peak since the process began.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):
                _CLEAR_REFS.write_text("5", encoding="ascii")
        self.before_mib = self.mib

    @property
    def mib(self) -> float:
        """The peak so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return _peak_resident_bytes() / 2**20


def _peak_resident_bytes() -> int:
    """Return the largest resident set of this process; the present one where the system keeps no peak."""
    with suppress(OSError, StopIteration):
        lines = _STATUS.read_bytes().splitlines()  # the name of a process can be any bytes
        return next(int(line.split()[1]) for line in lines if line.startswith(b"VmHWM:")) * 2**10
    import psutil

    memory = psutil.Process().memory_info()
    if sys.platform == "win32":
        return memory.peak_wset
    with suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 2**10
    return memory.rss
