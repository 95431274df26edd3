"""How much memory a stage took at its peak."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class PeakMemory:
    """Peak memory since construction, in MiB: the process's resident set on a CPU, allocated memory on a GPU.

    Linux can start the CPU's count afresh; where it cannot, the peak is that of the whole process.
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
        try:
            lines = _STATUS.read_text(encoding="ascii").splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
        except (OSError, StopIteration):
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
