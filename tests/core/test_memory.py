"""Free memory: what the machine has, and what its container may still take; and the peak of a process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from twinbud.core import memory

CPU = torch.device("cpu")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 1,024,000 free bytes and no container."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1_024_000))
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [("500000", "300000", 250_000), ("500000", "600000", 0), ("max", "300000", 1_024_000), ("9000000", "1", 1_024_000)],
)
def test_a_container_has_its_limit_less_what_it_uses_without_files(
    limit: str, used: str, free: int, system: Path
) -> None:
    (system / "memory.max").write_text(f"{limit}\n")
    (system / "memory.current").write_text(f"{used}\n")
    (system / "memory.stat").write_text("anon 7\ninactive_file 50000\n")
    assert memory.available_bytes(CPU) == free


def test_without_a_container_the_memory_of_the_machine_counts(system: Path) -> None:
    del system
    assert memory.available_bytes(CPU) == 1_024_000


def test_the_peak_is_reset_at_the_start_and_then_read_as_the_system_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, reset = tmp_path / "status", tmp_path / "clear_refs"
    monkeypatch.setattr(memory, "_STATUS", status)
    monkeypatch.setattr(memory, "_CLEAR_REFS", reset)
    status.write_text("VmPeak:\t9999999 kB\nVmHWM:\t  102400 kB\nVmRSS:\t   51200 kB\n", encoding="ascii")
    peak = memory.PeakMemory(CPU)
    assert reset.read_text(encoding="ascii") == "5"  # proc(5): the peak becomes the present size
    assert peak.before_mib == 100
    status.write_bytes(b"Name:\tray::run \xc2\nVmHWM:\t  307200 kB\n")  # Linux cuts a name after 15 bytes
    assert (peak.mib, peak.before_mib) == (300, 100)


def test_the_peak_covers_memory_that_was_freed_again() -> None:
    peak = memory.PeakMemory(CPU)
    torch.ones(2**28).sum()  # 1 GiB of float32; Linux counts pages per processor, and may be 100 MiB behind
    assert peak.mib >= peak.before_mib + 512


def test_without_proc_the_peak_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STATUS", Path("/nowhere"))
    monkeypatch.setattr(memory, "_CLEAR_REFS", Path("/nowhere/clear_refs"))
    assert memory.PeakMemory(CPU).mib >= psutil.Process().memory_info().rss / 2**20 - 1
