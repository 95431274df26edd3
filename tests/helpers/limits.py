"""Damaged files through ``decode`` in processes of their own, so that a crash, a hang or a swollen memory is named."""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from helpers.mutations import Mutation, mutation
from twinbud.config.data_config import DataConfig
from twinbud.config.reading import Plane
from twinbud.data.formats.base import BrokenImageError
from twinbud.data.formats.decoding import decode, without_warnings

MAX_SECONDS = 5.0
"""Of processor time, which other work on the machine does not change."""
MAX_MIB = 512
PIXELS = DataConfig().max_megapixels


Damage = Callable[[int], Mutation]


def judge(contents: bytes, name: str, frame: int | None = None, plane: Plane | None = None) -> str:
    r"""Say "decoded" or "refused"; anything else is what is wrong."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            with without_warnings():
                image = decode(contents, name=name, max_megapixels=PIXELS, frame=frame, plane=plane)
        except BrokenImageError as error:
            answer = "refused" if str(error).startswith(f"{name}: the file ") else f"unnamed: {error}"
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        else:
            sound = image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 and image.flags.c_contiguous
            answer = "decoded" if sound and image.size else f"a wrong array: {image.dtype} {image.shape}"
    return f"warned: {heard[0].message}" if heard else answer


def _serve(connection: Connection, damage: Damage) -> None:
    while (seed := connection.recv()) is not None:
        damaged = damage(seed)
        start = time.process_time()
        answer = judge(damaged.contents, "scan.png", damaged.frame, damaged.plane)
        connection.send((answer, time.process_time() - start, peak_mib()))


def peak_mib() -> float:
    """The most memory that this process ever held."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def decode_and_measure(path: Path, frame: int, plane: Plane) -> tuple[int, float]:
    """The height of an image, and the most memory in MiB that this process ever held; for a process of its own."""
    image = decode(path, name="scan", max_megapixels=PIXELS, frame=frame, plane=plane)
    return image.shape[0], peak_mib()


class _Worker:
    def __init__(self, damage: Damage) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would start with this process's memory
        self.connection, child_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(child_end, damage), daemon=True)
        self.process.start()
        child_end.close()

    def ask(self, seed: int) -> str:
        """The verdict on a seed; after one that is neither "decoded" nor "refused", the worker may be gone."""
        self.connection.send(seed)
        if not self.connection.poll(MAX_SECONDS + 60):
            self.process.kill()
            return "a hang"
        try:
            answer, seconds, mib = self.connection.recv()
        except EOFError:
            self.process.join()
            return f"a crash (exit code {self.process.exitcode})"
        if seconds > MAX_SECONDS:
            return f"{seconds:.1f} s"
        if mib > MAX_MIB:
            self.stop()
            return f"{mib:.0f} MiB"
        return answer

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def decode_mutations(seeds: Iterable[int], damage: Damage = mutation) -> tuple[Counter[str], list[str]]:
    """How many damaged files were decoded and refused; and of all others the seed, the changes and what went wrong."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    worker = _Worker(damage)
    for seed in seeds:
        if not worker.process.is_alive():
            worker = _Worker(damage)
        verdict = worker.ask(seed)
        counts[verdict if verdict in ("decoded", "refused") else "failed"] += 1
        if verdict not in ("decoded", "refused"):
            failures.append(f"{damage(seed).story}: {verdict}")
    worker.stop()
    return counts, failures
