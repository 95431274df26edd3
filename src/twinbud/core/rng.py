"""Independent named streams of random numbers.

Every random choice has a stream of its own, so that changing one (the order of samples, say) changes no other
(the split, the student's classifier). A stream is a pure function of its name, its seed and its counters.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

Stream = Literal[
    "split",
    "audit",
    "subset",
    "selection",
    "student",
    "student-head",
    "auxiliary-head",
    "order",
    "sampler",
    "augmentation",
    "mixing",
    "drop-path",
    "partner",
    "recovery",
    "probe",
    "bootstrap",
    "phantom",
    "proof",
    "teaching",
    "trust",
    "explanation",
    "export",
]
"""Names of the random streams. ``student`` initializes the body of the baselines CM2-CM4. ``partner`` draws the
same-class pairs of ``cs-kd-pair``; another name would change its numbers."""


def stream_seed(stream: Stream, seed: int, *counters: int | str) -> int:
    """Return a 63-bit seed that depends on the stream's name, the user's seed and the counters alone."""
    text = "/".join(["twinbud", stream, str(seed), *map(str, counters)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_stream(stream: Stream, seed: int, *counters: int | str) -> np.random.Generator:
    """Return a counter-based NumPy generator (Philox) at the start of the named stream."""
    return np.random.Generator(np.random.Philox(stream_seed(stream, seed, *counters)))
