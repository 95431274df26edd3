"""Time and memory against size: studies of many runs, and sets of many images.

    python benchmarks/scale.py [--runs 1000 10000] [--images 1000 10000 100000] [--folder FOLDER] [--json FILE]

Each size is measured in a fresh process on generated material, which is deleted afterwards: noise of 32 pixels as PNG,
four to a patient. 100,000 images take about 1 GB in FOLDER. "growth" is the exponent between two sizes: 1 is linear,
2 quadratic; a fixed cost makes it smaller.

Of a study: its plan, as a dry run makes it; the state of a folder in which all runs but one are finished; one more
look at it, as the display does each second; and one claim, taken and given back. Of images: listing the CSV that names
them, decoding all of them into the pixel cache, splitting, and one pass in batches of 64. Seconds are processor time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

CLASSES = ("benign", "malignant")
IMAGE_SIZE = 32
IMAGES_PER_PATIENT = 4
BATCH_SIZE = 64
METHODS = ("dual", "selection")


def main() -> None:
    """Measure all sizes and print two Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="*", default=[1000, 10_000])
    parser.add_argument("--images", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--folder", type=Path, default=None, help="where the material is made [the temporary folder]")
    parser.add_argument("--json", type=Path, default=None, help="file for all numbers")
    parser.add_argument("--one", choices=MEASURES, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(MEASURES[arguments.one](arguments.size, arguments.folder)))
        return
    found = {}
    for kind, sizes in (("study", arguments.runs), ("images", arguments.images)):
        if not sizes:
            continue
        found[kind] = {size: measure(kind, size, arguments.folder) for size in sizes}
        print(f"\n{table(kind, found[kind])}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


def measure(kind: str, size: int, parent: Path | None) -> dict[str, float]:
    """Measure one size in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="twinbud-scale-", dir=parent) as folder:
        command = [sys.executable, __file__, "--one", kind, "--size", str(size), "--folder", folder]
        environment = os.environ | {"TWINBUD_CACHE": f"{folder}/cache"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def table(kind: str, found: dict[int, dict[str, float]]) -> str:
    """Return a Markdown table of one column a size, with the growth between the last two sizes."""
    sizes = list(found)
    heads = [f"{size:,} {'runs' if kind == 'study' else 'images'}" for size in sizes]
    lines = [f"| {kind} | {' | '.join(heads)} | growth |", "|---|" + "---:|" * (len(sizes) + 1)]
    for name in found[sizes[0]]:
        values = [found[size][name] for size in sizes]
        shown = " | ".join(f"{value:.3g}" for value in values)
        lines.append(f"| {name} | {shown} | {growth(sizes, values)} |")
    return "\n".join(lines)


def growth(sizes: Sequence[int], values: Sequence[float]) -> str:
    """Return the exponent of the power law through the last two points, or a dash.

    >>> growth([10, 100], [2.0, 200.0])
    '2.00'
    """
    if len(values) < 2 or min(values[-2:]) <= 0:
        return "–"
    return f"{math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2]):.2f}"


def timed(compute: Callable[[], Result]) -> tuple[Result, float]:
    """Return a result and the seconds of processor time that it took, in all threads: other programs do not count."""
    start = time.process_time()
    result = compute()
    return result, time.process_time() - start


def measure_study(size: int, folder: Path) -> dict[str, float]:
    """Plan a study of ``size`` runs, and list its folder with all runs but one finished."""
    import torch

    from twinbud.core.memory import PeakMemory
    from twinbud.study.executors.base import Assignment, Waiting
    from twinbud.study.executors.in_process import InProcessExecutor
    from twinbud.study.requests import RequestedRun
    from twinbud.study.run import StudyRequest, plan_study, refresh_study
    from twinbud.study.status import StatusTracker

    recipe = {
        "title": "Many runs",
        "pairs": {"dinov2": {"teacher": "dinov2-small", "student": "half"}},
        "grid": {
            "data": ["noise"],
            "pair": ["dinov2"],
            "method": list(METHODS),
            "fraction": [0.5, 1.0],
            "sampling": math.ceil(size / 4),
        },
        "settings": {"threads": 1, "precision": "float32", "image_size": 28},
    }
    path = folder / "many.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    save_images(folder / "images", 40)
    request = StudyRequest(recipe=path, runs=folder / "runs", data=[f"noise={folder}/images/images.csv"])
    memory = PeakMemory(torch.device("cpu"))
    study, plan_seconds = timed(lambda: plan_study(request, executor=InProcessExecutor()))
    peak_mib = memory.mib - memory.before_mib
    store = study.store
    store.create()
    store.register_images(study.image_sets)
    requests = [
        RequestedRun(run_id=run.run_id, profile=study.profile, coordinates=run.coordinates) for run in study.runs
    ]
    _, request_seconds = timed(lambda: store.add_requests(study.recipe.name, study.recipe.digest, requests))
    for run in study.runs[1:]:
        store.write(run.run_id, {"facts": dict(run.facts)})
    again, state_seconds = timed(lambda: refresh_study(study))
    assert len(again.missing) == 1, "all runs but one have a record"
    assignment = Assignment(store=store, runs=study.runs, earlier_failures={}, threads=1)
    tracker = StatusTracker(assignment, num_done=0)
    tracker.scan()
    _, look_seconds = timed(tracker.scan)
    _, event_seconds = timed(lambda: tracker.update(Waiting()))
    with store.claim(study.runs[0].run_id) as is_claimed:
        assert is_claimed
    _, claim_seconds = timed(lambda: store.claim(study.runs[0].run_id).__enter__())
    return {
        "plan, s": plan_seconds,
        "plan, MiB": peak_mib,
        "save the plan, s": request_seconds,
        "read the state, s": state_seconds,
        "one look, s": look_seconds,
        "one event, s": event_seconds,
        "one claim, s": claim_seconds,
    }


def measure_images(size: int, folder: Path) -> dict[str, float]:
    """List, decode, split and stream ``size`` images."""
    import torch

    from twinbud.config.data_config import DataConfig
    from twinbud.core.memory import PeakMemory
    from twinbud.data.duplicates import blank_digests
    from twinbud.data.image_store import load_image_store
    from twinbud.data.pixel_cache import PixelCache
    from twinbud.data.prefetch import prefetch
    from twinbud.data.source import read_index
    from twinbud.data.split import make_split

    found: dict[str, float] = {}
    cpu = torch.device("cpu")
    source = save_images(folder / "images", size)

    def stage(name: str, compute: Callable[[], Any]) -> Any:
        memory = PeakMemory(cpu)
        result, found[f"{name}, s"] = timed(compute)
        found[f"{name}, MiB"] = memory.mib - memory.before_mib
        return result

    config = DataConfig(data=str(source))
    index = stage("list", lambda: read_index(config))
    cache = PixelCache(folder / "cache" / "pixels", IMAGE_SIZE)
    options: dict[str, Any] = {"image_size": IMAGE_SIZE, "max_megapixels": 1, "skip_broken": False, "cache": cache}
    index, images = stage("decode", lambda: load_image_store(index, **options))
    digests = stage("find blank images", lambda: blank_digests(images))
    split = stage("split", lambda: make_split(index, images.digests, config, seed=0, blank=digests))
    rows = images.rows(split.train)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).split(BATCH_SIZE)
    stage("one pass", lambda: sum(len(batch) for batch in prefetch(rows, order, cpu)))
    return found


def save_images(folder: Path, size: int) -> Path:
    """Write ``size`` images of noise and a CSV that names them, 1000 to a folder."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    lines = ["image_path,label,patient_id"]
    for number in range(size):
        name = f"{number // 1000:04d}/{number:07d}.png"
        if number % 1000 == 0:
            (folder / name).parent.mkdir(parents=True)
        pixels = generator.integers(0, 16, (IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8) * 16
        Image.fromarray(pixels).save(folder / name, compress_level=1)
        patient = number // IMAGES_PER_PATIENT
        lines.append(f"{name},{CLASSES[patient % 2]},{patient}")
    path = folder / "images.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


MEASURES: dict[str, Callable[[int, Path], dict[str, float]]] = {"study": measure_study, "images": measure_images}

if __name__ == "__main__":
    main()
