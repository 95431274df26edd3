"""Rules of operations that arrange elements anew: reshaping, slicing, joining, looking up."""

from __future__ import annotations

from collections.abc import Sequence

from twinbud.models.discovery.calls import Call, Dimensions, broadcast, unknown_operation
from twinbud.models.discovery.dimensions import (
    Concatenation,
    Fixed,
    Product,
    Unknown,
    cut,
    fix,
    regroup,
    resolve,
    unify,
)


def constant(call: Call) -> Sequence[Dimensions]:
    """All elements of the outputs are equal, so that any order of them is the same."""
    return [tuple(Unknown(size) for size in output.shape) for output in call.outputs]


def pad(call: Call) -> Sequence[Dimensions]:
    """Constants around a dimension."""
    features, padding = call.dimensions(0), call.arguments[1]
    result = list(features)
    for number in range(len(padding) // 2):
        before, after = padding[2 * number : 2 * number + 2]
        place = len(features) - 1 - number
        if before < 0 or after < 0:
            fix(features[place])
            result[place] = Fixed(call.outputs[0].shape[place])
        elif before or after:  # the padding is kept whole
            result[place] = Concatenation((Fixed(before), features[place], Fixed(after)))
    return [tuple(result)]


def view(call: Call) -> Sequence[Dimensions]:
    """A reshape."""
    return [regroup(call.dimensions(0), call.outputs[0].shape)]


def permute(call: Call) -> Sequence[Dimensions]:
    """Dimensions in another order."""
    features = call.dimensions(0)
    return [tuple(features[place % len(features)] for place in call.arguments[1])]


def transpose(call: Call) -> Sequence[Dimensions]:
    """Two dimensions exchanged."""
    features = list(call.dimensions(0))
    first, second = call.axis(1, len(features)), call.axis(2, len(features))
    features[first], features[second] = features[second], features[first]
    return [tuple(features)]


def matrix_transpose(call: Call) -> Sequence[Dimensions]:
    """Both dimensions of a matrix, or one of a vector, in reverse."""
    return [call.dimensions(0)[::-1]]


def expand(call: Call) -> Sequence[Dimensions]:
    """A dimension of size 1 repeated without a copy."""
    features, shape = call.dimensions(0), call.outputs[0].shape
    missing = len(shape) - len(features)
    padded = (*[Fixed(1)] * missing, *features)
    # repeated elements are equal, so that any order of them is the same
    return [
        tuple(
            dimension if dimension.size == size else Unknown(size)
            for dimension, size in zip(padded, shape, strict=True)
        )
    ]


def repeat(call: Call) -> Sequence[Dimensions]:
    """Dimensions repeated as a whole."""
    features, repeats = call.dimensions(0), call.arguments[1]
    padded = (*[Fixed(1)] * (len(repeats) - len(features)), *features)
    return [
        tuple(
            Unknown(count) if dimension.size == 1 else Product((Fixed(count), dimension))
            for dimension, count in zip(padded, repeats, strict=True)
        )
    ]


def concatenate(call: Call) -> Sequence[Dimensions]:
    """Tensors one after another along a dimension."""
    # torch skips empty one-dimensional tensors
    operands = [call.of(tensor) for tensor in call.arguments[0] if tensor.numel() or tensor.dim() > 1]
    place = call.axis(1, len(operands[0]))
    result = list(operands[0])
    for number in range(len(result)):
        if number == place:
            result[number] = resolve(Concatenation(tuple(operand[number] for operand in operands)))
            continue
        for operand in operands[1:]:
            unify(operands[0][number], operand[number])
    return [tuple(result)]


def stack(call: Call) -> Sequence[Dimensions]:
    """Tensors along a new dimension, whose order matters."""
    result = list(broadcast([call.of(tensor) for tensor in call.arguments[0]]))
    result.insert(call.axis(1, len(result) + 1), Fixed(len(call.arguments[0])))
    return [tuple(result)]


def split(call: Call) -> Sequence[Dimensions]:
    """Parts of a dimension, one after another."""
    features = call.dimensions(0)
    place = call.axis(2, len(features))
    start, result = 0, list[Dimensions]()
    for output in call.outputs:
        size = output.shape[place]
        result.append((*features[:place], cut(features[place], start, size), *features[place + 1 :]))
        start += size
    return result


def slices(call: Call) -> Sequence[Dimensions]:
    """A range of a dimension; with a step, the order of its elements matters."""
    features = call.dimensions(0)
    place = call.axis(1, len(features))
    length, size = call.outputs[0].shape[place], features[place].size
    start, step = call.arguments[2] or 0, call.arguments[4]
    if step == 1:
        part = cut(features[place], start + size if start < 0 else min(start, size), length)
    else:
        fix(features[place])
        part = Fixed(length)
    return [(*features[:place], part, *features[place + 1 :])]


def select(call: Call) -> Sequence[Dimensions]:
    """One element, or each element, of a dimension: its order matters."""
    features = call.dimensions(0)
    place = call.axis(1, len(features))
    fix(features[place])
    return [(*features[:place], *features[place + 1 :])] * len(call.outputs)


def move(call: Call) -> Sequence[Dimensions]:
    """Shift or reverse the elements of some dimensions; of all where none is named."""
    features = call.dimensions(0)
    for place in call.arguments[-1] or range(len(features)):
        fix(features[place])
    return [features]


def same_strides(call: Call) -> Sequence[Dimensions]:
    """The tensor itself; any other view of its memory is unknown."""
    tensor = call.arguments[0]
    if (list(tensor.shape), list(tensor.stride())) == (list(call.argument("size")), list(call.argument("stride"))):
        return [call.dimensions(0)]
    return unknown_operation(call)


def restride(call: Call) -> Sequence[Dimensions]:
    """How torch lays out a new tensor in memory, before it is filled: its dimensions stay."""
    features = call.dimensions(0)
    if [dimension.size for dimension in features] == list(call.outputs[0].shape):
        return [features]
    return unknown_operation(call)


def ordered(call: Call) -> Sequence[Dimensions]:
    """Consecutive numbers, whose order matters."""
    del call
    return []


def index(call: Call) -> Sequence[Dimensions]:
    """Look rows up in a table, such as relative positions: the order of the rows matters, that of the rest does not."""
    features, indices = call.dimensions(0), call.arguments[1]
    places = [place for place, index in enumerate(indices) if index is not None]
    for place in places:
        fix(features[place])
    if places != list(range(places[0], places[-1] + 1)):
        return unknown_operation(call)
    found = call.outputs[0].dim() - (len(features) - len(places))
    shape = call.outputs[0].shape[places[0] : places[0] + found]
    return [(*features[: places[0]], *(Fixed(size) for size in shape), *features[places[-1] + 1 :])]
