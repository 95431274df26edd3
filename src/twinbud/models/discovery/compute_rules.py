"""Rules of operations that compute: products, convolutions, norms, sums, pooling."""

from __future__ import annotations

from collections.abc import Sequence

from twinbud.models.discovery.calls import Call, Dimensions, broadcast, unknown_operation
from twinbud.models.discovery.dimensions import Fixed, Product, Unknown, fix, unify, unknowns


def matrix_product(call: Call) -> Sequence[Dimensions]:
    """(N, K) times (K, M), or times (K,)."""
    return [_multiply(call.dimensions(0), call.dimensions(1))]


def batched_matrix_product(call: Call) -> Sequence[Dimensions]:
    """A product of two activations, since weights have no batch: queries with keys, attention with values."""
    left, right = call.dimensions(0), call.dimensions(1)
    product = _multiply(left, right)
    for unknown in unknowns(left[-1]):
        unknown.is_attended = True
    return [product]


def matrix_product_with_bias(call: Call) -> Sequence[Dimensions]:
    """A bias, broadcast, plus (N, K) times (K, M)."""
    return [broadcast([_multiply(call.dimensions(1), call.dimensions(2)), call.dimensions(0)])]


def _multiply(left: Dimensions, right: Dimensions) -> Dimensions:
    """(…, N, K) times (…, K, M), or times (K,); leading dimensions are equal."""
    rows, columns = (list(right[:-1]), list(right[-1:])) if len(right) > 1 else (list(right), [])
    unify(left[-1], rows[-1])
    for own, other in zip(left[:-2], right[:-2], strict=True):
        unify(own, other)
    return (*left[:-1], *columns)


def linear(call: Call) -> Sequence[Dimensions]:
    """(…, K) times the transpose of (M, K), plus a bias (M,)."""
    features, weight, bias = (call.dimensions(place) for place in range(3))
    unify(features[-1], weight[1])
    return [broadcast([(*features[:-1], weight[0]), bias])]


def convolution(call: Call) -> Sequence[Dimensions]:
    """(N, C, …) with kernels (O, C / groups, …): the order of pixels and of a kernel's elements matters."""
    features, weight, bias = (call.dimensions(place) for place in range(3))
    is_transposed, groups = call.arguments[6], call.arguments[8]
    outputs, inputs = (weight[1], weight[0]) if is_transposed else weight[:2]
    if groups == 1:
        unify(features[1], inputs)
    elif is_transposed:
        return unknown_operation(call)
    else:  # the groups of the input are those of the output
        group = Unknown(groups)
        unify(features[1], Product((group, inputs)))
        unify(outputs, Product((group, Unknown(outputs.size // groups))))
    if bias:
        unify(outputs, bias[0])
    for dimension in (*weight[2:], *features[2:]):
        fix(dimension)
    spatial = [Fixed(size) for size in call.outputs[0].shape[2:]]
    return [(features[0], outputs, *spatial)]


def batch_norm(call: Call) -> Sequence[Dimensions]:
    """Weight, bias and running statistics run along the channels."""
    features = call.dimensions(0)
    for place in range(1, 5):  # weight, bias, running mean and variance
        for dimension in call.dimensions(place):
            unify(features[1], dimension)
    return [features]


def layer_norm(call: Call) -> Sequence[Dimensions]:
    """Weight and bias run along the last dimensions; mean and variance do not depend on their order."""
    features = call.dimensions(0)
    for place in (2, 3):
        affine = call.dimensions(place)
        for own, other in zip(features[len(features) - len(affine) :], affine, strict=True):
            unify(own, other)
    return [features]


def group_norm(call: Call) -> Sequence[Dimensions]:
    """Weight and bias run along the channels."""
    features, groups = call.dimensions(0), call.arguments[6]
    for place in (1, 2):
        for dimension in call.dimensions(place):
            unify(features[1], dimension)
    if groups > 1:  # the norm of a group depends on which channels are in it
        unify(features[1], Product((Unknown(groups), Unknown(features[1].size // groups))))
    return [features]


def softmax(call: Call) -> Sequence[Dimensions]:
    """Normalize along a dimension, in any order of its elements."""
    return [call.dimensions(0)]


def reduce(call: Call) -> Sequence[Dimensions]:
    """A sum, mean, maximum or norm does not depend on the order of what it runs over."""
    features, over = call.dimensions(0), call.argument("dim")
    if over is None or over == []:
        over = list(range(len(features)))
    places = {place % len(features) for place in ([over] if isinstance(over, int) else over)}
    if call.outputs[0].dim() == len(features):
        kept = tuple(Fixed(1) if place in places else dimension for place, dimension in enumerate(features))
    else:
        kept = tuple(dimension for place, dimension in enumerate(features) if place not in places)
    return [kept] * len(call.outputs)


def spatial(call: Call) -> Sequence[Dimensions]:
    """Pooling, resizing: the last two dimensions are an image's."""
    features = call.dimensions(0)
    for dimension in features[-2:]:
        fix(dimension)
    return [(*features[:-2], *(Fixed(size) for size in output.shape[-2:])) for output in call.outputs]
