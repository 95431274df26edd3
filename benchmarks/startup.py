"""Where the time before the first step goes, with a warm cache.

    python benchmarks/startup.py --data DATA/brain-mri [--teacher dinov2-small]

Prints, after each part of what `twinbud train` does before it trains, the seconds that it took. Nothing else should run
on the machine; give the command twice, so that the second finds the pixels in the cache.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def timed(part: str) -> Iterator[None]:
    """Print what the part takes, in wall time and in processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    yield
    print(f"| {part} | {time.perf_counter() - wall:.2f} | {time.process_time() - processor:.2f} |", flush=True)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--teacher", default="dinov2-small")
    options = parser.parse_args()
    print("| part | seconds | of a processor |\n|---|---|---|")
    with timed("import torch"):
        import torch
    with timed("import timm"):
        importlib.import_module("timm")
    with timed("import the rest"):
        from twinbud.config.loading import run_config
        from twinbud.config.schema import resolve
        from twinbud.core.progress import SilentProgress
        from twinbud.data.split import make_split
        from twinbud.models.initialization import open_initialization
        from twinbud.runs import context
        from twinbud.runs.resource_cache import ResourceCache
    settings = {
        "data": options.data,
        "teacher": options.teacher,
        "fraction": 0.05,
        "profile": "quick",
        "near_duplicates": "ignore",
    }
    config, resource_cache = run_config(settings, output=Path("-")), ResourceCache()
    with timed("list the images"):
        context.list_images(config, SilentProgress(), resource_cache)
    with timed("open the teacher and select"):
        initialization = open_initialization(config)
    with timed("read the images or their cached pixels"):
        image_index, image_store = context.open_images(config, SilentProgress(), resource_cache)
    with timed("divide"):
        make_split(image_index, image_store.digests, config.data, seed=0)
    with timed("build S and S′"):
        family = initialization.student_spec.family
        training = resolve(config.training, temperature=family.temperature, drop_path=family.drop_path)
        initialization.build(training, num_classes=len(image_index.classes), device=torch.device("cpu"))


if __name__ == "__main__":
    main()
