"""How many of timm's networks have widths that are found and proved: one network of each of timm's model files.

    python benchmarks/families.py              # the smallest network of each model file, about ten minutes
    python benchmarks/families.py regnety_004  # these networks

Prints one line a network: how many widths were found, the relative error of the proof, how many of them half of the
network can have narrower, and its share of the parameters; or why the network is refused.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator

import timm
import torch
from timm.models import _registry

from twinbud.core.errors import TwinbudError
from twinbud.models.discovery.family import NUM_CLASSES, discover, prove_widths
from twinbud.models.narrowing import narrowed_shapes
from twinbud.models.outline import outline
from twinbud.models.widths import width_sizes

LARGEST = 60_000_000
"""Parameters of the largest network that is tried: a proof keeps several copies in float64."""


def smallest_networks() -> Iterator[str]:
    """Yield the network with the fewest parameters of each of timm's model files, if it is not too large."""
    for names in _registry._module_to_models.values():
        sizes: dict[str, int] = {}
        for name in sorted(names):
            try:
                sizes[name] = sum(p.numel() for p in outline(name, name, num_classes=NUM_CLASSES).parameters())
            except TwinbudError:  # needs arguments
                continue
        if sizes and min(sizes.values()) <= LARGEST:
            yield min(sizes, key=lambda name: sizes[name])


def report(name: str) -> str:
    """Find and prove the widths of one network and describe them in a line."""
    start = time.perf_counter()
    family = discover(name, name, {})
    torch.manual_seed(0)
    error = prove_widths(family, timm.create_model(name, num_classes=NUM_CLASSES), name)
    seconds = time.perf_counter() - start
    template = outline(name, name, num_classes=NUM_CLASSES)
    state, specs = template.state_dict(), family.specs(template)
    sizes = family.narrow_sizes(template, 2)
    half = sum(torch.Size(shape).numel() for shape in narrowed_shapes(specs, state, sizes).values())
    whole = sum(tensor.numel() for tensor in state.values())
    widths = len(width_sizes(specs, state))
    narrower = f"{len(sizes)} of them narrower in half, which has {half / whole:.0%} of the weights"
    return f"{widths} widths, relative error {error:.0e}, {seconds:.1f} s; {narrower}"


def main(names: list[str]) -> None:
    """Report on the networks in ``names``, or on the smallest of each of timm's model files."""
    warnings.filterwarnings("ignore")
    proved = total = 0
    for name in names or smallest_networks():
        total += 1
        try:
            line = report(name)
            proved += 1
        except TwinbudError as error:
            line = f"refused: {error}"
        except Exception as error:  # what a network does that nobody has met yet is worth a line, not the end
            line = f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        print(f"{name}: {line}", flush=True)
    print(f"{proved} of {total} proved (timm {timm.__version__}, torch {torch.__version__})")


if __name__ == "__main__":
    main(sys.argv[1:])
