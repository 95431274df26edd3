"""The settings of torch that hold for a whole process or thread, kept apart from those of the caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def own_torch_state() -> Iterator[None]:
    """Compute as a fresh process would, and leave the caller's settings and random state as they were.

    Within it gradients are recorded, neither inference mode nor autocast is on, and new tensors are float32 on the CPU.
    It can decorate a function, for each call of it. Torch is imported when it is entered.
    """
    import torch

    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))  # timm draws initial weights also where others follow
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_dtype() != torch.float32:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
