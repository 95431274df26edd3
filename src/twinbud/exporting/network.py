"""From a trained network to an ONNX graph: normalization, network, temperature and probabilities."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from twinbud.core.errors import TwinbudError, first_line
from twinbud.core.extras import import_extra
from twinbud.exporting.quiet import silence
from twinbud.models.model_folder import ModelFolder

if TYPE_CHECKING:
    from onnx import ModelProto

Exporter = Literal["dynamo", "legacy"]
"""torch's two ways to ONNX: through ``torch.export``, or by tracing."""
EXPORTERS: tuple[Exporter, ...] = get_args(Exporter)
EXTRA = "export"
INPUT, PIXELS, OUTPUTS = "image", "pixels", ("probabilities", "logits")
"""Names of the file's input, of the network's input inside the file, and of the file's outputs."""
_MAX_BATCH = 2**16


class ExportedClassifier(nn.Module):
    """What the file computes after the resize.

    Args:
        model_folder: Network, task and preprocessing.
        temperature: Divides the logits before they become probabilities; above 0.
    """

    def __init__(self, model_folder: ModelFolder, temperature: float) -> None:
        super().__init__()
        self.network = model_folder.model
        self.task, self.temperature = model_folder.task, temperature
        self.normalize = model_folder.preprocessing.normalization(torch.device("cpu"))

    def forward(self, pixels_NCSS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute probabilities (N, C) and logits (N, K), float32, of resized pixels (N, 3, S, S), uint8."""
        logits_NK = self.network(self.normalize(pixels_NCSS)).float()
        # in float64, as ``Task.probabilities`` computes them
        probabilities_NC = self.task.tensor_probabilities(logits_NK.double() / self.temperature)
        return probabilities_NC.float(), logits_NK


def export_network(classifier: ExportedClassifier, image_size: int, *, exporter: Exporter, opset: int) -> ModelProto:
    """Translate a classifier; what it computes is not checked here (see ``exporting.gate``).

    Args:
        classifier: In evaluation mode, on the CPU.
        image_size: S, in pixels.
        exporter: One of torch's two.
        opset: Version of ONNX's operators.

    Returns:
        A model from ``pixels``, uint8 (N, 3, S, S) with any N, to ``probabilities`` and ``logits``.

    Raises:
        TwinbudError: The network cannot be translated, or a package is missing.
    """
    onnx = import_extra("onnx", EXTRA, where="export")
    import_extra("onnxscript", EXTRA, where="export")
    # not the same number for images and channels, which a trace would take for one
    example = torch.zeros(2, 3, image_size, image_size, dtype=torch.uint8)
    options: dict[str, Any] = {"opset_version": opset, "input_names": [PIXELS], "output_names": [*OUTPUTS]}
    with silence():
        try:
            if exporter == "dynamo":
                batch = {0: torch.export.Dim("N", min=1, max=_MAX_BATCH)}
                program = torch.onnx.export(classifier, (example,), dynamo=True, dynamic_shapes=(batch,), **options)
                assert program is not None, "the exporter returns a program where no file is named"
                return program.model_proto
            file = io.BytesIO()
            options |= {"f": file, "dynamic_axes": {name: {0: "N"} for name in (PIXELS, *OUTPUTS)}}
            torch.onnx.export(classifier, (example,), dynamo=False, **options)
            return onnx.load_model_from_string(file.getvalue())
        except Exception as error:  # the exporters raise errors of many kinds, some around the one that tells why
            reason = error.__cause__ if isinstance(error.__cause__, Exception) else error
            problem = f"the {exporter} exporter of torch cannot translate the network ({first_line(reason)})"
            raise TwinbudError(problem, where="export", fix="Report this network") from error
