"""What the convolutional families share: batch norms, the classifier, and the image sizes that they can process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from timm.layers.squeeze_excite import SEModule
from timm.models import group_parameters
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn
from torch.func import functional_call

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import RecoverySupport, SelectionFamily, TimmModel
from twinbud.models.outline import input_size
from twinbud.models.widths import Axis, TensorSpec

_BATCH_NORM_VECTORS = ("weight", "bias", "running_mean", "running_var")
_ACCEPTED_SIZES: WeakKeyDictionary[TimmModel, set[int]] = WeakKeyDictionary()
"""Image sizes that networks are known to process."""


class MapRecovery(RecoverySupport):
    """A stream of maps (B, D, H, W) that has another width after almost every block."""

    has_largest_stream_first: ClassVar[bool] = False

    def tokens(self, stream: torch.Tensor) -> torch.Tensor:
        """Reshape (B, D, H, W) to (B, H·W, D)."""
        return stream.flatten(2).transpose(1, 2)

    def add(self, stream: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Add (B, H·W, D) to (B, D, H, W)."""
        return stream + tokens.transpose(1, 2).unflatten(2, stream.shape[2:])

    def finish(self, model: TimmModel, stream: torch.Tensor) -> torch.Tensor:
        """Return the last map, which nothing normalizes before it is pooled."""
        del model
        return stream


def in_order(block: nn.Module, activation: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the layers of a sequence as a function that changes no map that a convolution gave, the refit's target.

    Args:
        block: Its children, one after another.
        activation: The name of the one that changes its input.
    """

    def forward(stream: torch.Tensor) -> torch.Tensor:
        for name, layer in block.named_children():
            stream = layer(stream.clone() if name == activation else stream)
        return stream

    return forward


class ConvolutionalFamily(SelectionFamily):
    """What timm itself says of a convolutional network: its layers, and the sizes of images that it can process."""

    temperature: ClassVar[float] = 3.0
    drop_path: ClassVar[float] = 0.0
    memory_format: ClassVar[torch.memory_format] = torch.channels_last

    def gains_from_bf16(self, model: TimmModel, device: torch.device) -> bool:
        """Return false for depthwise convolutions on a CPU: they take 1.5 times as long in bf16 (EXPERIMENTS.md)."""
        return device.type != "cpu" or not any(
            module.groups == module.in_channels > 1 for module in model.modules() if isinstance(module, nn.Conv2d)
        )

    def layer_numbers(self, model: TimmModel) -> dict[str, int]:
        """Return the number of each parameter's layer as timm counts them; nothing if timm has none for the network."""
        if not hasattr(model, "group_matcher"):
            return {}
        return group_parameters(model, model.group_matcher(coarse=False), reverse=True)

    def image_arguments(self, model: TimmModel, image_size: int, where: str) -> dict[str, Any]:
        """Accept any size that a forward pass accepts; no timm argument depends on it.

        Raises:
            TwinbudError: The network cannot process images of that size.
        """
        require_image_size(model, image_size, where)
        return {}


class SpecCollector:
    """Collects the specs of a network's tensors, layer by layer.

    Args:
        model: The network.
        family: The family's name, for errors.
    """

    def __init__(self, model: TimmModel, family: str) -> None:
        self.model, self.family = model, family
        self.specs: dict[str, TensorSpec] = {}

    def convolution(self, name: str, outputs: Axis | None, inputs: Axis | None, *, layer: str | None = None) -> None:
        """Add a convolution; a depthwise one runs along ``outputs`` alone.

        Raises:
            TwinbudError: ``name`` is another kind of layer, or has groups of more than one channel.
        """
        module = self.model.get_submodule(name)
        if not isinstance(module, nn.Conv2d):
            raise self.unknown(name)
        if module.groups > 1:
            if module.groups != module.in_channels or module.in_channels != module.out_channels:
                raise self.unknown(name)
            inputs = None
        self._layer(name, (outputs, inputs, None, None), layer)

    def grouped_convolution(self, name: str, outputs: Axis, inputs: Axis, *, layer: str | None = None) -> None:
        """Add a convolution whose axes already tell its groups: each group's channels are indexed alike."""
        self._layer(name, (outputs, inputs, None, None), layer)

    def linear(self, name: str, outputs: Axis | None, inputs: Axis | None, *, layer: str | None = None) -> None:
        """Add a linear layer."""
        self._layer(name, (outputs, inputs), layer)

    def batch_norm(self, name: str, width: Axis | None, *, layer: str | None = None) -> None:
        """Add a batch norm with its statistics; the counter of its batches runs along no width.

        Raises:
            TwinbudError: ``name`` is another kind of norm; those that mix channels have no widths.
        """
        module = self.model.get_submodule(name)
        if not isinstance(module, nn.BatchNorm2d):
            raise self.unknown(name)
        for kind in _BATCH_NORM_VECTORS:
            if getattr(module, kind) is not None:
                self.specs[f"{name}.{kind}"] = TensorSpec((width,), layer=layer)
        if module.num_batches_tracked is not None:
            self.specs[f"{name}.num_batches_tracked"] = TensorSpec((), layer=layer)

    def sequence(self, name: str, outputs: Axis, inputs: Axis, *, layer: str | None = None) -> None:
        """Add a sequence of one convolution and its norm, perhaps with layers that have no tensors."""
        for place, module in enumerate(self.model.get_submodule(name)):
            if isinstance(module, nn.Conv2d):
                self.convolution(f"{name}.{place}", outputs, inputs, layer=layer)
            elif isinstance(module, nn.BatchNorm2d):
                self.batch_norm(f"{name}.{place}", outputs, layer=layer)

    def squeeze_excite(self, name: str, width: Axis, *, layer: str | None = None) -> None:
        """Add squeeze-excite of timm's two kinds, with a squeeze width of its own; nothing for an identity.

        Raises:
            TwinbudError: ``name`` is another kind of channel attention.
        """
        module = self.model.get_submodule(name)
        if isinstance(module, nn.Identity):
            return
        names = {SqueezeExcite: ("conv_reduce", "conv_expand"), SEModule: ("fc1", "fc2")}.get(type(module))
        if names is None:
            raise self.unknown(name)
        squeeze = Axis(f"squeeze/{name.removesuffix('.se')}")
        self.convolution(f"{name}.{names[0]}", squeeze, width, layer=layer)
        self.convolution(f"{name}.{names[1]}", width, squeeze, layer=layer)

    def classifier(self, name: str, features: Axis, num_features: int) -> None:
        """Add the classifier, if there is one; some kinds of pooling give it two equal parts of the features."""
        module = self.model.get_submodule(name)
        if not isinstance(module, nn.Linear):
            return
        inputs = Axis(features.width, copies=module.in_features // num_features)
        self.specs[f"{name}.weight"] = TensorSpec((None, inputs), "classifier")
        if module.bias is not None:
            self.specs[f"{name}.bias"] = TensorSpec((None,), "classifier")

    def finish(self) -> dict[str, TensorSpec]:
        """Return the specs in the order of the network's tensors.

        Raises:
            TwinbudError: The network has a tensor for which none was added.
        """
        names = list(self.model.state_dict())
        for name in names:
            if name not in self.specs:
                raise self.unknown(name)
        return {name: self.specs[name] for name in names}

    def unknown(self, name: str) -> TwinbudError:
        """Return the error for a tensor or layer whose widths are not known."""
        return TwinbudError(
            f"no width is defined for '{name}' of this {type(self.model).__name__}",
            where=f"selection from a {self.family}",
            fix="Choose another teacher, or train it whole with --method finetune",
        )

    def _layer(self, name: str, axes: tuple[Axis | None, ...], layer: str | None) -> None:
        self.specs[f"{name}.weight"] = TensorSpec(axes, layer=layer)
        if self.model.get_submodule(name).bias is not None:
            self.specs[f"{name}.bias"] = TensorSpec(axes[:1], layer=layer)


def is_described(family: SelectionFamily, model: nn.Module) -> bool:
    """Return whether the family knows the widths of every tensor of ``model``."""
    try:
        family.specs(model)
    except TwinbudError:
        return False
    return True


def require_image_size(model: TimmModel, image_size: int, where: str) -> None:
    """Accept any size that a forward pass of the shapes accepts; it runs once for each network and size.

    Args:
        model: The network, on any device; in the same mode afterwards.
        image_size: In pixels.
        where: The network's name, for the error.

    Raises:
        TwinbudError: The network cannot process images of that size.
    """
    accepted = _ACCEPTED_SIZES.setdefault(model, set())
    if image_size in accepted:
        return
    was_training = model.training
    images_BCSS = torch.empty(2, 3, image_size, image_size, device="meta")
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    outlines = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    try:
        with torch.no_grad():
            functional_call(model.eval(), outlines, (images_BCSS,))
    except Exception as error:  # each architecture fails with another type
        raise TwinbudError(
            f"{where} cannot process images of {image_size} pixels ({error})",
            where="--image-size",
            fix=f"Use --image-size {input_size(model)}, the size that it was built for",
        ) from error
    finally:
        model.train(was_training)
    accepted.add(image_size)
