"""How long one image takes, in onnxruntime and in torch, measured in turns so that all meet the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from twinbud.core.environment import num_cores
from twinbud.exporting.gate import open_session
from twinbud.exporting.network import INPUT, OUTPUTS, ExportedClassifier
from twinbud.exporting.quiet import silence
from twinbud.training.amp import cpu_threads
from twinbud.training.compile import compiled

THREADS = (1, 2)
_NUM_WARMUP_ROUNDS = 5
_MIN_ROUNDS, _MAX_ROUNDS, _SECONDS = 15, 101, 3.0


def measure_latency(
    files: Mapping[str, bytes], classifier: ExportedClassifier, image_size: int, *, compile_torch: bool = True
) -> dict[str, dict[int, float]]:
    """Time a single image of the network's size, from uint8 pixels to probabilities.

    Args:
        files: ONNX files by the name of their row.
        classifier: The same in torch.
        image_size: S, in pixels.
        compile_torch: Whether to compile the classifier as well, which takes a minute.

    Returns:
        For each row, by the number of threads, the median of seconds; rows ``torch`` and, where torch can compile the
        classifier, ``torch, compiled``. Only numbers of threads for which this process has cores.
    """
    image = np.random.default_rng(0).integers(0, 256, (1, image_size, image_size, 3), dtype=np.uint8)
    rows: dict[str, dict[int, float]] = {}
    for threads in THREADS[: num_cores()]:
        calls = {name: _onnx_call(file, image, threads) for name, file in files.items()}
        calls |= _torch_calls(classifier, image, compile_torch)
        with cpu_threads(threads), torch.inference_mode():
            for name, seconds in _medians(calls).items():
                rows.setdefault(name, {})[threads] = seconds
    return rows


def speedup(slow: bytes, fast: bytes, image_size: int) -> float:
    """Return how many times faster one file is than another: the median of paired runs of one image in one thread."""
    image = np.random.default_rng(0).integers(0, 256, (1, image_size, image_size, 3), dtype=np.uint8)
    rounds = _rounds({name: _onnx_call(file, image, 1) for name, file in (("slow", slow), ("fast", fast))})
    return statistics.median(slow / fast for slow, fast in zip(rounds["slow"], rounds["fast"], strict=True))


def _onnx_call(file: bytes, image: np.ndarray, threads: int) -> Callable[[], object]:
    session = open_session(file, num_threads=threads)
    return lambda: session.run(list(OUTPUTS), {INPUT: image})


def _torch_calls(
    classifier: ExportedClassifier, image: np.ndarray, compile_torch: bool
) -> dict[str, Callable[[], object]]:
    pixels = torch.from_numpy(image).permute(0, 3, 1, 2).contiguous()
    calls: dict[str, Callable[[], object]] = {"torch": lambda: classifier(pixels)}
    if not compile_torch:
        return calls
    fast = compiled(classifier.forward)
    with silence(), torch.inference_mode():
        try:
            fast(pixels)
        except Exception:  # no compiler, or a network that inductor cannot compile: the row is missing
            return calls
    return {**calls, "torch, compiled": lambda: fast(pixels)}


def _medians(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    return {name: statistics.median(seconds) for name, seconds in _rounds(calls).items()}


def _rounds(calls: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Time all calls in turns, for about three seconds."""
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_NUM_WARMUP_ROUNDS):
        for call in calls.values():
            call()
    end = time.perf_counter() + _SECONDS
    for number in range(_MAX_ROUNDS):
        if number >= _MIN_ROUNDS and time.perf_counter() > end:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            rounds[name].append(time.perf_counter() - start)
    return rounds
