"""Which precision, and why."""

from __future__ import annotations

import time

import pytest
import torch

from twinbud.training import amp
from twinbud.training.amp import choose_precision


def test_a_run_that_goes_on_keeps_what_was_once_chosen_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine bf16 is now four times as fast, whatever it was before."""
    seconds = {torch.float32: 4.0, torch.bfloat16: 1.0}
    monkeypatch.setattr(amp, "_matrix_product_seconds", seconds.__getitem__)
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu).name == "bf16"
    assert choose_precision("auto", cpu, previous="float32").name == "float32"
    assert choose_precision("float32", cpu, previous="bf16").name == "float32"
    assert choose_precision("auto", cpu, previous="nonsense").name == "bf16"


@pytest.mark.parametrize(("seconds", "expected_count"), [(0.001, 15), (0.4, 2)])
def test_slow_products_are_measured_twice_and_fast_ones_more_often(
    seconds: float, expected_count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, products = 0.0, 0

    def multiply(*_: torch.Tensor) -> None:
        nonlocal now, products
        products += 1
        now += 9 * seconds if products == 1 else seconds  # the first call prepares the kernel

    monkeypatch.setattr(torch, "mm", multiply)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert amp._matrix_product_seconds(torch.float32) == pytest.approx(seconds)
    assert products == expected_count
