"""Run a network on shapes alone and follow every dimension of its tensors."""

from __future__ import annotations

from contextlib import ExitStack
from copy import deepcopy
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from twinbud.models.discovery.calls import Call, Dimensions, elementwise, unknown_operation
from twinbud.models.discovery.dimensions import Dimension, Fixed, Unknown, fix
from twinbud.models.discovery.rules import RULES
from twinbud.models.families.base import TimmModel

BATCH_SIZE = 2


class _Follow(TorchDispatchMode):
    """Apply the rule of every operation to the dimensions of its tensors."""

    def __init__(self, known: dict[str, Dimensions], tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        # the tensors are kept, since another tensor could get the identity of one that is gone
        self._kept = list(tensors.values())
        self._known = {id(tensor): known[name] for name, tensor in tensors.items()}
        self.without_rule: set[str] = set()

    def of(self, tensor: torch.Tensor) -> Dimensions:
        """Return the dimensions of a tensor; those of a constant are fixed."""
        return self._known.get(id(tensor)) or tuple(Fixed(size) for size in tensor.shape)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        outputs = [
            output for output in (result if isinstance(result, (list, tuple)) else [result]) if _is_tensor(output)
        ]
        if not outputs:
            return result
        arguments = tuple(
            args[place] if place < len(args) else kwargs.get(argument.name, argument.default_value)
            for place, argument in enumerate(func._schema.arguments)
        )
        names = tuple(argument.name for argument in func._schema.arguments)
        call = Call(arguments, names, outputs, self.of)
        name = func._schema.name.partition("::")[2]
        rule = RULES.get(name) or RULES.get(name.removesuffix("_"))
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = elementwise
        if rule is None:
            rule = unknown_operation
            self.without_rule.add(name)
        found = list(rule(call))[: len(outputs)]
        sizes = [[dimension.size for dimension in dimensions] for dimensions in found]
        if sizes != [list(output.shape) for output in outputs[: len(found)]]:
            found = unknown_operation(call)  # the rule does not know this form of the operation
            self.without_rule.add(name)
        for place, output in enumerate(outputs):
            whole = tuple(Fixed(size) for size in output.shape)
            self._known[id(output)] = found[place] if place < len(found) else whole
            self._kept.append(output)
        return result


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _tables(model: TimmModel) -> dict[str, Dimensions]:
    """Return the dimensions of floating-point buffers: along one where all values are equal, the order is free."""
    return {
        name: tuple(
            Unknown(size) if bool((buffer == buffer.narrow(dimension, 0, 1)).all()) else Fixed(size)
            for dimension, size in enumerate(buffer.shape)
        )
        for name, buffer in model.named_buffers()
        if buffer.is_floating_point() and not buffer.is_meta and buffer.numel()
    }


def follow_dimensions(model: TimmModel, image_size: int) -> tuple[dict[str, Dimensions], set[str]]:
    """Run ``model`` on meta tensors and return what is known of its tensors' dimensions afterwards.

    The order of pixels, of images and of classes matters; everything else starts unknown.

    Args:
        model: The network; unchanged, and copied without its numbers. On the meta device, nothing is known of the
            numbers in its buffers, whose order then matters.
        image_size: Image side in pixels, one that the network can process.

    Returns:
        The dimensions of each tensor of ``model.state_dict()``, and the names of operations without a rule, whose
        tensors were fixed.
    """
    copy = deepcopy(model).to("meta").eval()
    tensors = copy.state_dict(keep_vars=True)
    known: dict[str, Dimensions] = {  # whole numbers are indices, whose values matter
        name: tuple((Unknown if tensor.is_floating_point() else Fixed)(size) for size in tensor.shape)
        for name, tensor in tensors.items()
    }
    images_BCSS = torch.empty(BATCH_SIZE, 3, image_size, image_size, device="meta")
    buffers = dict(copy.named_buffers())
    tables = {name: dimensions for name, dimensions in _tables(model).items() if name not in tensors}
    mode = _Follow({**known, **tables}, {**tensors, **{name: buffers[name] for name in tables}})
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(mode)
        logits_NK = copy(images_BCSS)
    result: Dimension
    for result in mode.of(logits_NK):
        fix(result)
    return known, mode.without_rule
