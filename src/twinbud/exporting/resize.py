"""twinbud's resize (``data.preprocessing.resize``) as an ONNX graph, bit for bit.

Pillow resizes an 8-bit image in two passes. Each multiplies the rows, or the columns, by a matrix of bicubic weights
that are rounded to multiples of 2^-22, and rounds the result to 8 bits. Both are exact in float64: weights have at most
23 bits and pixels 8, and a sum of them has fewer than 53. The matrix follows from the size of the image alone, so the
graph computes it for any size. ONNX's own ``Resize`` rounds otherwise, which changes pixels of noise by up to 2 levels,
and it always starts with the rows; the order changes pixels of black and white noise by up to 28 levels.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from twinbud.data.preprocessing import resize

if TYPE_CHECKING:
    from onnx import FunctionProto

DOMAIN = "twinbud"
"""Domain of the functions, which are part of the file: they consist of ONNX's own operators."""

_RESIZE = """
<domain: "{domain}", opset_import: ["": {opset}, "{domain}": 1]>
resize (image) => (pixels) {{
  planes = Transpose <perm = [0, 3, 1, 2]> (image)
  target = Constant <value_ints = [{size}]> ()
  height = Shape <start = 1, end = 2> (image)
  width = Shape <start = 2, end = 3> (image)
  added = Constant <value_ints = [{added}]> ()
  factor = Constant <value_ints = [{factor}]> ()
  long_side = Add (height, added)
  short_side = Mul (width, factor)
  shrinks = Greater (height, target)
  is_tall = Greater (long_side, short_side)
  is_tall_and_shrinks = And (shrinks, is_tall)
  axis = Constant <value_ints = [0]> ()
  vertical_first = Squeeze (is_tall_and_shrinks, axis)
  rows = If (vertical_first) <
    then_branch = turn_first () => (uint8[?, ?, ?, ?] turned) {{ turned = Transpose <perm = [0, 1, 3, 2]> (planes) }},
    else_branch = keep_first () => (uint8[?, ?, ?, ?] kept) {{ kept = Identity (planes) }}
  >
  once = {domain}.resize_rows (rows)
  columns = Transpose <perm = [0, 1, 3, 2]> (once)
  twice = {domain}.resize_rows (columns)
  pixels = If (vertical_first) <
    then_branch = keep_last () => (uint8[?, ?, ?, ?] kept_last) {{ kept_last = Identity (twice) }},
    else_branch = turn_last () => (uint8[?, ?, ?, ?] turned_last) {{
      turned_last = Transpose <perm = [0, 1, 3, 2]> (twice)
    }}
  >
}}
"""
_ROWS = """
<domain: "{domain}", opset_import: ["": {opset}]>
resize_rows (rows) => (resized) {{
  side = Constant <value = int64 {{{size}}}> ()
  first_axis = Constant <value_ints = [0]> ()
  last_length = Shape <start = 3, end = 4> (rows)
  num_pixels = Squeeze (last_length, first_axis)
  is_done = Equal (num_pixels, side)
  resized = If (is_done) <
    then_branch = keep () => (uint8[?, ?, ?, ?] kept) {{ kept = Identity (rows) }},
    else_branch = interpolate () => (uint8[?, ?, ?, ?] interpolated) {{
      zero = Constant <value = double {{0.0}}> ()
      half = Constant <value = double {{0.5}}> ()
      one = Constant <value = double {{1.0}}> ()
      two = Constant <value = double {{2.0}}> ()
      three_halves = Constant <value = double {{1.5}}> ()
      five_halves = Constant <value = double {{2.5}}> ()
      four = Constant <value = double {{4.0}}> ()
      five = Constant <value = double {{5.0}}> ()
      eight = Constant <value = double {{8.0}}> ()
      minus_half = Constant <value = double {{-0.5}}> ()
      steps = Constant <value = double {{4194304.0}}> ()
      white = Constant <value = double {{255.5}}> ()
      second_axis = Constant <value_ints = [1]> ()
      num_outputs = Cast <to = 11> (side)
      num_inputs = Cast <to = 11> (num_pixels)
      scale = Div (num_inputs, num_outputs)
      widening = Max (scale, one)
      narrowing = Div (one, widening)
      output = Range (zero, num_outputs, one)
      output_middle = Add (output, half)
      center = Mul (output_middle, scale)
      center_row = Unsqueeze (center, first_axis)
      input = Range (zero, num_inputs, one)
      input_column = Unsqueeze (input, second_axis)
      offset = Sub (input_column, center_row)
      offset_middle = Add (offset, half)
      position = Mul (offset_middle, narrowing)
      x = Abs (position)
      near_1 = Mul (three_halves, x)
      near_2 = Sub (near_1, five_halves)
      near_3 = Mul (near_2, x)
      near_4 = Mul (near_3, x)
      near = Add (near_4, one)
      far_1 = Sub (x, five)
      far_2 = Mul (far_1, x)
      far_3 = Add (far_2, eight)
      far_4 = Mul (far_3, x)
      far_5 = Sub (far_4, four)
      far = Mul (far_5, minus_half)
      is_near = Less (x, one)
      is_far = Less (x, two)
      far_or_none = Where (is_far, far, zero)
      weight = Where (is_near, near, far_or_none)
      sum = ReduceSum <keepdims = 1> (weight, first_axis)
      share = Div (weight, sum)
      fine = Mul (share, steps)
      magnitude = Abs (fine)
      magnitude_raised = Add (magnitude, half)
      magnitude_rounded = Floor (magnitude_raised)
      sign = Sign (fine)
      rounded = Mul (sign, magnitude_rounded)
      matrix = Div (rounded, steps)
      levels = Cast <to = 11> (rows)
      exact = MatMul (levels, matrix)
      raised = Add (exact, half)
      clipped = Clip (raised, zero, white)
      interpolated = Cast <to = 2> (clipped)
    }}
  >
}}
"""


def resize_functions(size: int, opset: int) -> list[FunctionProto]:
    """Build the resize as the installed Pillow does it: a function ``resize`` and one that it calls.

    Args:
        size: S, the side of the result in pixels.
        opset: Version of ONNX's operators.

    Returns:
        Functions of the domain ``DOMAIN``; the first one maps uint8 (N, H, W, 3) to uint8 (N, 3, S, S).
    """
    from onnx import parser

    added, factor = _tall_rule(size)
    values = {"opset": opset, "domain": DOMAIN, "size": size, "added": added, "factor": factor}
    return [parser.parse_function(text.format(**values)) for text in (_RESIZE, _ROWS)]


def resizes_vertically_first(height: int, width: int, size: int) -> bool:
    """Return which pass the installed Pillow makes first; the order matters where a pass clips."""
    added, factor = _tall_rule(size)
    return height > size and height + added > factor * width


def _tall_rule(size: int) -> tuple[int, int]:
    """Return a and f of the rule that an image is tall, and resized vertically first, if H + a > f W.

    It has been a = S and f = 2 since Pillow 13, and a = 0 and f = 100 before.
    """
    return (size, 2) if _follows_pillow_13() else (0, 100)


@cache
def _follows_pillow_13() -> bool:
    """Look at what Pillow does with an image that only the rule of version 13 calls tall.

    Its bright rows are lifted above white by one order of the passes and not by the other.
    """
    tall = np.zeros((9, 2, 3), np.uint8)
    tall[3:6, 1] = 255
    return not np.array_equal(resize(tall, 4), resize_passes(tall, 4, vertical_first=False))


def resize_passes(image: np.ndarray, size: int, *, vertical_first: bool) -> np.ndarray:
    """Resize by the graph's two matrix products, in NumPy and in a given order.

    Args:
        image: (H, W, 3) uint8.
        size: S, in pixels.
        vertical_first: The order of the two passes.

    Returns:
        (S, S, 3) uint8.
    """
    result = image
    for axis in (0, 1) if vertical_first else (1, 0):
        levels = np.moveaxis(result, axis, -1).astype(np.float64) @ _matrix(result.shape[axis], size)
        result = np.moveaxis(np.clip(levels + 0.5, 0, 255.5).astype(np.uint8), -1, axis)
    return result


def _matrix(num_inputs: int, num_outputs: int) -> np.ndarray:
    """Return Pillow's bicubic weights, (inputs, outputs) float64, multiples of 2^-22."""
    scale = num_inputs / num_outputs
    center = (np.arange(num_outputs) + 0.5) * scale
    x = np.abs((np.arange(num_inputs)[:, None] - center + 0.5) / max(scale, 1.0))
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    weight = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    fine = weight / weight.sum(axis=0) * 2**22
    return np.sign(fine) * np.floor(np.abs(fine) + 0.5) / 2**22
