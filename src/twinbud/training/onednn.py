"""The backward pass without a kernel of oneDNN that writes past its workspace.

For the weights of a strided 1x1 convolution, oneDNN (3.12, in torch 2.14) processes blocks of 8 input channels on AVX2
and of 16 on AVX-512. If the layer has fewer and its input is ``channels_last``, which torch.compile also chooses by
itself, the process aborts or the gradient is wrong: https://github.com/uxlfoundation/oneDNN/issues/6035.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

_LARGEST_BLOCK = 16


def is_safe_with_onednn(networks: Iterable[nn.Module]) -> bool:
    """Return whether no strided 1x1 convolution of the networks has fewer input channels than a block of oneDNN."""
    return not any(
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels < _LARGEST_BLOCK
        for network in networks
        for module in network.modules()
    )


@contextmanager
def onednn_enabled(enabled: bool) -> Iterator[None]:
    """Compute without oneDNN in the context if ``enabled`` is false; torch's own kernels are slower."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = before and enabled  # mkldnn.flags() would also set, and warn of, TF32
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before
