"""A network that nobody described, as a family of its own: ``--family auto``."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar

import timm
import torch
from torch import nn

from twinbud.config.schema import Attention
from twinbud.core.errors import TwinbudError
from twinbud.models.discovery.found import find_widths
from twinbud.models.families.base import SelectionFamily, TimmModel
from twinbud.models.families.plain import PlainFamily
from twinbud.models.invariance import prove
from twinbud.models.narrowing import narrow, narrowed_shapes
from twinbud.models.outline import input_size, outline
from twinbud.models.widths import Axis, TensorSpec, width_sizes

NUM_CLASSES = 2
"""Of the network whose widths are found; any other number gives the same widths."""
PROOF_SIZE = 128
"""Image side in pixels at which widths are proved, for networks that can process it: the last of their feature maps,
a 32nd of it, has several positions, without which attention or pooling can hide a tensor from the proof."""


class DiscoveredFamily(PlainFamily):
    """One architecture of timm, whose widths are found and proved instead of described.

    Its student has the same layers and the same names of tensors. Depth, layers for learning-rate decay and image sizes
    are what timm says of them; recovery is not supported.

    Args:
        model: The whole network, with a classifier; its weights are not used.
        where: The network, for errors.

    Raises:
        TwinbudError: No width is found.
    """

    name: ClassVar[str] = "network with found widths"
    members: ClassVar[str] = "any timm network with --family auto"
    has_fixed_image_size: ClassVar[bool] = True  # nothing that depends on it can be resampled

    def __init__(self, model: TimmModel, where: str) -> None:
        self._where = where
        _require_own_tensors(model, where)
        self._whole = deepcopy(model).to("meta").eval()
        self._specs = find_widths(model, input_size(model))
        if not width_sizes(self._specs, self._whole.state_dict()):
            raise TwinbudError(
                f"no width of a {type(model).__name__} can be permuted, so that none can be selected",
                where=where,
                fix="Choose another teacher, or train it whole with --method finetune",
            )

    def owns(self, model: nn.Module) -> bool:
        """Return whether the tensors of ``model`` have the names of this network's; a classifier may be missing."""
        return set(model.state_dict()) <= set(self._specs)

    def specs(self, model: TimmModel) -> dict[str, TensorSpec]:
        """Return the widths that were found; a narrower network has the same.

        Raises:
            TwinbudError: ``model`` has other tensors.
        """
        if not self.owns(model):
            raise TwinbudError(
                f"a {type(model).__name__} with other layers cannot be selected from {self._where}",
                where="--student",
                fix="Use --student half",
            )
        return {name: self._specs[name] for name in model.state_dict()}

    def narrow_arguments(self, architecture: str, model: TimmModel, divisor: int) -> dict[str, Any]:
        """Return no arguments: ``narrow_sizes`` gives the sizes."""
        del architecture, model, divisor
        return {}

    def narrow_sizes(self, model: TimmModel, divisor: int) -> dict[str, int]:
        """Divide each width, in whole heads; widths that timm's layers cannot have narrower stay whole.

        Raises:
            TwinbudError: All of them must stay whole.
        """
        specs, state = self.specs(model), model.state_dict()
        axes = {axis.width: axis for spec in specs.values() for _, axis in spec.widths()}
        together: dict[str, dict[str, int]] = {}
        for width, size in width_sizes(specs, state).items():
            head_size = axes[width].head_size or 1
            narrow = max(1, size // head_size // divisor) * head_size
            # a table with one entry for each head shrinks with the heads
            together.setdefault(axes[width].by_heads().width, {})[width] = narrow
        sizes = self._narrowable(model, specs, list(together.values()))
        if not sizes:
            raise TwinbudError(
                "none of its widths can be made narrower in timm's layers",
                where=self._where,
                fix="Choose another teacher, or train it whole with --method finetune",
            )
        return sizes

    def check_attention(self, model: TimmModel, attention: Attention) -> None:
        """Refuse narrower heads: the widths that are found do not tell which layers form a head.

        Raises:
            TwinbudError: ``attention`` is ``within``.
        """
        del model
        if attention == "within":
            raise TwinbudError(
                "the heads of a network whose widths are found cannot get narrower",
                where="--attention within",
                fix="Use --family described, or --attention heads",
            )

    def check_compatible(self, teacher: TimmModel, student: TimmModel, attention: Attention) -> None:
        """Prove the widths on the teacher's architecture.

        Raises:
            TwinbudError: A width is not one; the error names the tensor that broke the proof.
        """
        del student, attention
        prove_widths(self, teacher, self._where)

    def _narrowable(
        self, model: TimmModel, specs: Mapping[str, TensorSpec], candidates: list[dict[str, int]]
    ) -> dict[str, int]:
        """Return the sizes among ``candidates`` with which the network still runs, all at once.

        If it does not run with all, each half of the candidates is tried, so that a few that must stay whole are found
        in few steps.
        """
        template = deepcopy(model).to("meta").eval()
        state, kept = template.state_dict(), dict[str, int]()

        def runs(sizes: Mapping[str, int]) -> bool:
            try:
                narrowed = narrow(deepcopy(template), narrowed_shapes(specs, state, sizes))
            except TwinbudError:
                return False
            return _runs(narrowed, input_size(template))

        def keep(these: list[dict[str, int]]) -> None:
            nonlocal kept
            sizes = {width: size for candidate in these for width, size in candidate.items()}
            if sizes and runs(kept | sizes):
                kept |= sizes
            elif len(these) > 1:
                keep(these[: len(these) // 2])
                keep(these[len(these) // 2 :])

        keep(candidates)
        while changed := self._changed_axes(template, specs, kept):
            candidates = [candidate for candidate in candidates if not changed & set(candidate)]
            kept = {}
            keep(candidates)
        return kept

    def _changed_axes(self, template: TimmModel, specs: Mapping[str, TensorSpec], sizes: Mapping[str, int]) -> set[str]:
        """Return the widths whose heads or groups have another size in the narrower network, though its shapes fit.

        It computes something else than the selected weights did: a layer keeps the number of its heads or groups, say.
        Where one head or group is left, its channels are all there is.
        """
        narrowed = narrow(deepcopy(template), narrowed_shapes(specs, template.state_dict(), sizes))
        found = find_widths(narrowed, input_size(narrowed))
        return {
            own.width
            for name, spec in specs.items()
            for own, other in zip(spec.axes, found[name].axes, strict=True)
            if isinstance(own, Axis)
            and isinstance(other, Axis)
            and sizes.get(own.width, 0) > (own.head_size or 1)
            and (own.copies, own.unit, own.head_size) != (other.copies, other.unit, other.head_size)
        }


def _require_own_tensors(model: TimmModel, where: str) -> None:
    """Require that no tensor has two names: they would be selected, and proved, each by itself.

    Raises:
        TwinbudError: One has.
    """
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if first.setdefault(id(tensor), name) != name:
            raise TwinbudError(
                f"'{first[id(tensor)]}' and '{name}' are one tensor, and shared tensors cannot be selected",
                where=where,
                fix="Choose another teacher, or train it whole with --method finetune",
            )


def prove_widths(family: SelectionFamily, model: TimmModel, where: str) -> float:
    """Permute the widths of a copy of ``model`` and return how far the output changes, at most 1e-9.

    Args:
        family: What says which widths there are.
        model: A network with numbers; a classifier is added to the copy of one without.
        where: The network, for the error.

    Raises:
        TwinbudError: A permutation changes the output; the error names the tensor that broke the proof.
    """
    copy = deepcopy(model)
    if not copy.num_classes:  # without one, the output itself has the order of the features
        copy.reset_classifier(NUM_CLASSES)
    template = deepcopy(copy).to("meta").eval()
    size = PROOF_SIZE if _runs(template, PROOF_SIZE) else input_size(template)
    return prove(copy, family.specs(copy), size, where)


def discover(architecture: str, where: str, model_args: Mapping[str, Any]) -> DiscoveredFamily:
    """Return the family of one architecture of timm.

    Args:
        architecture: timm's name.
        where: What needs it, for errors.
        model_args: Arguments of ``timm.create_model``.

    Raises:
        TwinbudError: timm cannot build it, or no width is found.
    """
    arguments = {**model_args, "num_classes": NUM_CLASSES}
    model = outline(architecture, where, **arguments)
    saved = model.state_dict()
    if any(buffer.is_floating_point() for name, buffer in model.named_buffers() if name not in saved):
        model = timm.create_model(architecture, pretrained=False, **arguments)  # numbers that only timm knows
    return DiscoveredFamily(model, where)


def _runs(model: TimmModel, image_size: int) -> bool:
    """Return whether a network on the meta device can process images of that size."""
    try:
        with torch.no_grad():
            model(torch.empty(2, 3, image_size, image_size, device="meta"))
    except Exception:  # each architecture fails with another type
        return False
    return True
