"""What a network costs whoever runs it: parameters, multiplications, and time for one image on a CPU."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from twinbud.models.families.base import TimmModel
from twinbud.models.outline import count_parameters
from twinbud.training.amp import cpu_threads

_NUM_WARMUP_CALLS, _NUM_TIMED_CALLS = 3, 15


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """Cost of one image, and size of the network; the names are those of ``RunCost``."""

    num_parameters: int
    num_multiplications: int
    latency_seconds: float


def measure_network(model: TimmModel, image_size: int) -> NetworkCost:
    """Count parameters and multiplications, and time a single image on one CPU thread in float32.

    Args:
        model: A classifier on any device; it is not changed.
        image_size: Side of the image in pixels.

    Returns:
        Multiplications of all convolutions, linear layers and attention products, each with its addition; and the
        median seconds of repeated forward passes.
    """
    network = copy.deepcopy(model).cpu().eval()
    image_BCSS = torch.zeros(1, 3, image_size, image_size)
    with cpu_threads(1), torch.no_grad():
        # the counter does not know the fused attention of a CPU
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            network(image_BCSS)
        seconds = []
        for _ in range(_NUM_WARMUP_CALLS + _NUM_TIMED_CALLS):
            start = time.perf_counter()
            network(image_BCSS)
            seconds.append(time.perf_counter() - start)
    return NetworkCost(
        num_parameters=count_parameters(network),
        num_multiplications=counter.get_total_flops() // 2,  # a multiplication and an addition count as two
        latency_seconds=statistics.median(seconds[_NUM_WARMUP_CALLS:]),
    )
