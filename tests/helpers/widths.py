"""Claims that every map of widths must meet, checked on a small network of the family."""

from __future__ import annotations

import torch

from twinbud.models.families.base import SelectionFamily, TimmModel
from twinbud.models.families.registry import family_of
from twinbud.models.invariance import TOLERANCE, PermutationTest, claims, randomize
from twinbud.models.widths import TensorSpec, width_sizes


def images(size: int) -> torch.Tensor:
    """Two images (2, 3, size, size), float64, standard normal."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def check_widths(model: TimmModel, image_size: int) -> None:
    """Permuting any width changes nothing: channels inside heads, and whole heads.

    A tensor with one entry a head, such as a table of relative positions, follows whole heads alone.
    """
    test = PermutationTest(randomize(model), images(image_size))
    own = family_of(model).specs(model)
    assert set(own) == set(model.state_dict())
    for specs, widths in claims(own):
        sizes = width_sizes(specs, model.state_dict())
        for width in widths:
            assert sizes[width] > 1, f"{width} has one index: permuting it proves nothing"
            change = test.relative_change(specs, [width])
            assert change <= TOLERANCE, f"{width}: {change}"


def check_that_no_tensor_can_be_left_out(model: TimmModel, image_size: int) -> None:
    """Positive control: once a tensor is missing in the map of a width, permuting the width changes the output.

    Axes of attention heads are permuted both ways, and one of the two must notice.
    """
    test = PermutationTest(randomize(model), images(image_size))
    own = family_of(model).specs(model)
    largest: dict[tuple[str, int], float] = {}
    for specs, widths in claims(own):
        for name, spec in specs.items():
            for dimension, axis in spec.widths():
                if axis.width in widths:
                    change = test.relative_change(specs, [axis.width], leave_out=name)
                    place = name, dimension
                    largest[place] = max(change, largest.get(place, 0.0))
    assert set(largest) == {(name, dimension) for name, spec in own.items() for dimension, _ in spec.widths()}
    for (name, dimension), change in largest.items():
        assert change > TOLERANCE, f"{name} is not needed in the width of its dimension {dimension}"


def check_coverage(teacher: TimmModel, student: TimmModel, family: SelectionFamily) -> None:
    """A dimension that differs between teacher and student runs along a width, unless it is resampled or new."""
    specs: dict[str, TensorSpec] = family.specs(teacher)
    larger = teacher.state_dict()
    for name, tensor in student.state_dict().items():
        if name not in larger or specs[name].role in ("classifier", "position", "patch"):
            continue
        for dimension, (before, after) in enumerate(zip(larger[name].shape, tensor.shape, strict=True)):
            assert before == after or specs[name].axes[dimension] is not None, f"{name}[{dimension}]"
