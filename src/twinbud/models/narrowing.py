"""Narrower networks than timm's arguments can build: timm's own network with fewer channels, in place.

timm builds a VGG or an EfficientNet in one width. ``narrow`` replaces the tensors of such a network by smaller ones and
brings the attributes that its layers compute with into step. ``build_network`` makes the layers narrow while timm
builds the network, before its initialization runs: new weights are then those of the new sizes, whose standard
deviation often depends on the number of channels.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.overrides import TorchFunctionMode

from twinbud.core.errors import TwinbudError, first_few
from twinbud.models.families.base import TimmModel
from twinbud.models.narrow_modules import follow_sizes, resize_module
from twinbud.models.outline import INITIALIZERS, classifiers, outline
from twinbud.models.widths import TensorSpec, width_sizes

_LARGE = 2**22
"""Elements of a tensor that only layers which can be reset have."""
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""Shapes of tensors by their full names; a tensor that is not named keeps its shape."""
_MAX_OUTLINES = 32
_OUTLINES: dict[str, TimmModel] = {}
"""The networks that ``outline_network`` built last, by its arguments."""


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, Shape]:
    """Return the shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def narrowed_shapes(
    specs: Mapping[str, TensorSpec], state: Mapping[str, torch.Tensor], sizes: Mapping[str, int]
) -> dict[str, Shape]:
    """Return the shape of every tensor in ``state`` once some widths are narrower.

    Args:
        specs: The widths along which the tensors run.
        state: The tensors; only their shapes are used.
        sizes: Number of indices by the width's name; a width that is not named stays whole.

    Raises:
        TwinbudError: A width does not exist, or gets no index or more than it has.
    """
    known = width_sizes(specs, state)
    for width, size in sizes.items():
        if not 1 <= size <= known.get(width, 0):
            problem = f"the width {width} cannot have {size} indices"
            problem += f"; it has {known[width]}" if width in known else "; the network has no such width"
            raise TwinbudError(problem, where="narrowing", fix=f"The widths are {first_few(sorted(known), 5)}")
    return {name: specs[name].shape(shape, {**known, **sizes}) for name, shape in shapes_of(state).items()}


def narrow(model: TimmModel, shapes: Shapes) -> TimmModel:
    """Give the tensors of ``model`` smaller shapes, in place and on their device.

    The new tensors hold the leading elements of the old ones; random weights so keep the standard deviation of the
    larger layer, which ``build_network`` avoids.

    Args:
        model: Any network of timm, on the meta device too.
        shapes: By the names of ``model.state_dict()``.

    Returns:
        ``model``.

    Raises:
        TwinbudError: A name is unknown, a shape is larger, or a layer is of a type that cannot be made narrower.
    """
    _require_smaller(shapes_of(model.state_dict()), shapes)
    old_sizes = _first_sizes(model)
    for path, module in model.named_modules():
        _narrow_module(path, module, shapes)
    follow_sizes(model, old_sizes)
    return model


def outline_network(architecture: str, where: str, shapes: Shapes | None, /, **arguments: Any) -> TimmModel:
    """Return a network on the meta device; see ``build_network``.

    A run asks for the same few networks many times. Equal arguments therefore return one network, which nobody may
    change.
    """
    try:
        key = json.dumps([architecture, shapes, arguments], sort_keys=True)
    except TypeError:  # an argument that is no plain value, such as a class of layers
        return _outline_network(architecture, where, shapes, arguments)
    if key not in _OUTLINES:
        if len(_OUTLINES) == _MAX_OUTLINES:
            del _OUTLINES[next(iter(_OUTLINES))]
        _OUTLINES[key] = _outline_network(architecture, where, shapes, arguments)
    return _OUTLINES[key]


def _outline_network(architecture: str, where: str, shapes: Shapes | None, arguments: Mapping[str, Any]) -> TimmModel:
    model = outline(architecture, where, **arguments)
    if shapes is None:
        return model
    try:
        return narrow(model, _for_classes(architecture, where, shapes, arguments))
    except TwinbudError as error:
        raise error.at(where) from error


def build_network(architecture: str, where: str, shapes: Shapes | None, /, **arguments: Any) -> TimmModel:
    """Build a network of timm, which may have smaller tensors than timm's arguments can give it.

    It is initialized as timm initializes layers of these sizes: every layer gets its sizes when it becomes a part of
    the network, and is then reset; the initialization that timm's networks run over all their layers at the end of
    their construction reads the new sizes.

    Args:
        architecture: timm's name.
        where: What needs the network, for errors.
        shapes: Of the tensors, for any number of classes; None for those of timm's own network.
        **arguments: Passed to ``timm.create_model``; ``num_classes`` is one of them.

    Raises:
        TwinbudError: See ``outline`` and ``narrow``.
    """
    if shapes is None:
        return timm.create_model(architecture, pretrained=False, **arguments)
    parts: list[nn.Module] = []
    with _on_registration(parts.append):
        whole = outline(architecture, where, **arguments)
    old_sizes = _first_sizes(whole)
    names = {id(module): name for name, module in whole.named_modules()}
    paths = iter([names.get(id(part)) for part in parts])
    narrowed = shapes_of(outline_network(architecture, where, shapes, **arguments).state_dict())

    def make_narrow(module: nn.Module) -> None:
        path = next(paths)
        reset = getattr(module, "reset_parameters", None)
        if path is not None and _narrow_module(path, module, narrowed) and callable(reset):
            reset()

    with _on_registration(make_narrow), _WithoutLargeTensors(narrowed):
        model = timm.create_model(architecture, pretrained=False, **arguments)
    _narrow_module("", model, narrowed)
    follow_sizes(model, old_sizes)
    return model


def _for_classes(architecture: str, where: str, shapes: Shapes, arguments: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the shapes for the number of classes in ``arguments``, with a classifier even if ``shapes`` has none."""
    prefixes = tuple(f"{name}." for name in classifiers(architecture))
    num_classes = arguments["num_classes"]
    if num_classes and not any(name.startswith(prefixes) for name in shapes):
        model = narrow(outline(architecture, where, **{**arguments, "num_classes": 0}), shapes)
        model.reset_classifier(num_classes)
        return shapes_of(model.state_dict())
    if not num_classes:
        kept = outline(architecture, where, **arguments).state_dict()
        return {name: tuple(shape) for name, shape in shapes.items() if name in kept}
    return {
        name: (num_classes, *shape[1:]) if name.startswith(prefixes) else tuple(shape) for name, shape in shapes.items()
    }


def _first_sizes(model: TimmModel) -> dict[str, int]:
    """Return the length of the first dimension of each tensor, without the classifier's."""
    found = model.get_classifier()  # two of them in a network with a distillation token
    heads = found if isinstance(found, tuple) else (found,)
    classifier = {id(parameter) for head in heads for parameter in head.parameters()}
    named = model.state_dict(keep_vars=True).items()
    return {name: tensor.shape[0] for name, tensor in named if tensor.dim() and id(tensor) not in classifier}


@torch.no_grad()
def _narrow_module(path: str, module: nn.Module, shapes: Shapes) -> bool:
    """Give the tensors that ``module`` itself holds, but not its parts, their new shapes; return whether any changed.

    Raises:
        TwinbudError: The module is of a type that cannot be made narrower.
    """
    tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    prefix = f"{path}." if path else ""
    changes = {
        name: (tuple(tensor.shape), shapes[prefix + name])
        for name, tensor in tensors.items()
        if tuple(tensor.shape) != shapes.get(prefix + name, tuple(tensor.shape))
    }
    if not changes:
        return False
    resize_module(path, module, changes)
    for name, (_, shape) in changes.items():
        tensor = tensors[name]
        smaller = tensor[tuple(slice(size) for size in shape)].detach().clone()
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(module, name, nn.Parameter(smaller, requires_grad=tensor.requires_grad) if is_parameter else smaller)
    return True


class _WithoutLargeTensors(TorchFunctionMode):
    """Skips the initialization of large tensors that ``make_narrow`` replaces and initializes: VGG's 103 million.

    Args:
        shapes: Those of the network to be built; tensors of other shapes are not a part of it.
    """

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.shapes = frozenset(shapes.values())

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func.__name__ in INITIALIZERS:
            target = args[0] if args else kwargs["tensor"]
            if target.numel() > _LARGE and tuple(target.shape) not in self.shapes:
                return target
        return func(*args, **kwargs)


@contextmanager
def _on_registration(call: Callable[[nn.Module], None]) -> Iterator[None]:
    """Call ``call`` with each module that this thread makes a part of another one, while the context is open."""
    thread = threading.get_ident()

    def hook(_: nn.Module, __: str, part: nn.Module | None) -> None:
        if part is not None and threading.get_ident() == thread:
            call(part)

    handle = register_module_module_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _require_smaller(whole: Shapes, shapes: Shapes) -> None:
    """Require that every shape is that of a tensor of the network, or smaller.

    Raises:
        TwinbudError: One is not; the line names it.
    """
    for name, shape in shapes.items():
        full = whole.get(name)
        if full is None or len(full) != len(shape) or not all(0 < s <= f for s, f in zip(shape, full, strict=True)):
            found = f"timm's has shape {full}" if full else "timm's network has no such tensor"
            raise TwinbudError(
                f"'{name}' cannot be narrowed to shape {tuple(shape)}: {found}",
                where="narrowing",
                fix="Name the architecture that the shapes come from",
            )
