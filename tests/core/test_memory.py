"""How much memory is free: what the machine has, and what its container may still take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from twinbud.core import memory

CPU = torch.device("cpu")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 1,000 KiB available."""
    (tmp_path / "meminfo").write_text("MemTotal: 4000 kB\nMemAvailable: 1000 kB\n")
    monkeypatch.setattr(memory, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("most", "now", "free"),
    [("500000", "300000", 250_000), ("500000", "600000", 0), ("max", "300000", 1_024_000), ("9000000", "1", 1_024_000)],
)
def test_a_container_may_take_what_it_has_not_taken_yet_files_aside(
    most: str, now: str, free: int, system: Path
) -> None:
    (system / "memory.max").write_text(f"{most}\n")
    (system / "memory.current").write_text(f"{now}\n")
    (system / "memory.stat").write_text("anon 7\ninactive_file 50000\n")
    assert memory.available_bytes(CPU) == free


def test_without_a_container_the_machine_tells_and_without_both_there_is_enough(system: Path) -> None:
    assert memory.available_bytes(CPU) == 1_024_000
    (system / "meminfo").unlink()
    assert memory.available_bytes(CPU) > 2**60
