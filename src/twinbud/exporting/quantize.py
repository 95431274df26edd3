"""Static quantization to 8 bits by onnxruntime: weights by channel, activations by the ranges of training images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from twinbud.core.errors import TwinbudError, first_line
from twinbud.core.extras import import_extra
from twinbud.exporting.network import EXTRA, PIXELS
from twinbud.exporting.quiet import silence

if TYPE_CHECKING:
    from onnx import ModelProto

_OPERATORS = ["Conv", "Gemm", "MatMul"]
"""What takes the time; the rest stays in float32."""


def quantize(network: ModelProto, pixels_NCSS: np.ndarray) -> ModelProto:
    """Quantize convolutions and matrix products, in the format QDQ.

    Args:
        network: A float32 model from ``pixels``; it is not changed.
        pixels_NCSS: uint8 (N, 3, S, S) of training images, from which the ranges of the activations are taken.

    Returns:
        A model with the same input and outputs.

    Raises:
        TwinbudError: onnxruntime cannot quantize it, or a package is missing.
    """
    onnx = import_extra("onnx", EXTRA, where="export --int8")
    tools = import_extra("onnxruntime.quantization", EXTRA, where="export --int8")
    prepare = import_extra("onnxruntime.quantization.shape_inference", EXTRA, where="export --int8").quant_pre_process

    class Reader(tools.CalibrationDataReader):
        """Gives one image after the other."""

        def __init__(self) -> None:
            self._rows: Iterator[np.ndarray] = iter(pixels_NCSS)

        def get_next(self) -> dict[str, np.ndarray] | None:
            """Return the next input, None after the last."""
            row = next(self._rows, None)
            return None if row is None else {PIXELS: row[None]}

    with tempfile.TemporaryDirectory() as folder, silence():
        start, ready, result = (Path(folder) / f"{name}.onnx" for name in ("start", "ready", "result"))
        onnx.save_model(network, str(start))
        try:
            prepare(str(start), str(ready), skip_symbolic_shape=True)
            tools.quantize_static(
                str(ready),
                str(result),
                Reader(),
                quant_format=tools.QuantFormat.QDQ,
                op_types_to_quantize=_OPERATORS,
                per_channel=True,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
            )
        except Exception as error:  # the quantizer raises errors of many kinds
            problem = f"onnxruntime cannot quantize the network ({first_line(error)})"
            raise TwinbudError(problem, where="export --int8", fix="Export without --int8") from error
        return onnx.load_model(str(result))
