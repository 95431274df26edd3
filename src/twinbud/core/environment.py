"""Where and with what a run was made, so that its numbers can be made again."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("twinbud", "torch", "torchvision", "timm", "numpy", "scikit-learn", "pillow", "safetensors")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Describe versions, machine, device, threads, time and commit, ready for JSON."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in _PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
    }


def num_cores() -> int:
    """Return the number of cores of this process, which may be fewer than those of the machine (containers)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def package_version(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _commit() -> str | None:
    """Return the commit of a twinbud that runs from its own checkout, with a + where files have changed since."""
    source = Path(__file__).resolve().parent
    try:
        answers = [
            subprocess.run(
                ["git", "-C", str(source), *words], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for words in (
                ["ls-files", "--error-unmatch", __file__],
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no"],
            )
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return answers[1] + ("+" if answers[2] else "")
