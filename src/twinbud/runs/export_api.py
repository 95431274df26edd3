"""The flat Python API of ``twinbud export``.

Torch is imported when the function is called, so that ``import twinbud`` is cheap.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from twinbud.core.progress import SilentProgress, TerminalProgress
from twinbud.core.torch_state import own_torch_state

if TYPE_CHECKING:
    from twinbud.runs.export import Export


@own_torch_state()
def export(
    model: str | Path,
    *,
    output: str | Path | None = None,
    format: Literal["onnx"] = "onnx",
    int8: bool = False,
    tolerance: float = 1e-3,
    opset: int = 23,
    measure_compiled: bool = True,
    force: bool = False,
    show_progress: bool = True,
) -> Export:
    """Write a trained classifier as one file that runs without torch and twinbud.

    The file takes images of any size, uint8 (N, H, W, 3), and gives probabilities and logits. It is written only if
    onnxruntime computes with it what torch computes, on the run's own test images and on others.

    Args:
        model: A run folder, or its ``model`` folder, which is checked on generated images.
        output: The file; None for ``RUN.onnx`` beside the folder, or ``RUN.int8.onnx``.
        format: ``"onnx"``.
        int8: Quantize to 8 bits; refused where that is not faster on this machine, or less accurate.
        tolerance: Largest difference of a logit from torch's, in float32.
        opset: Version of ONNX's operators, 18 to 23.
        measure_compiled: Measure compiled torch as well, which takes a minute.
        force: Replace ``output``.
        show_progress: Report on standard error.

    Returns:
        The file, what was compared, and a table of sizes, latencies and accuracies.

    Raises:
        TwinbudError: There is no finished run and no model folder, a value is outside its range, the file does not
            pass, or ``output`` exists.

    Example:
        >>> import twinbud
        >>> export = twinbud.export(  # doctest: +SKIP
        ...     "runs/first", output="first.onnx", measure_compiled=False, show_progress=False
        ... )
        >>> export.gate.logit_difference < 1e-3  # doctest: +SKIP
        True
    """
    from twinbud.config.fields import read_value
    from twinbud.core.errors import TwinbudError, unknown_choice
    from twinbud.runs.export import export_model

    if format != "onnx":
        raise unknown_choice("--format", format, ["onnx"])
    tolerance = read_value("tolerance", tolerance, float)
    if not tolerance > 0:
        raise TwinbudError(f"'{tolerance:g}' is not above 0", where="--tolerance", fix="Leave it out for 0.001")
    return export_model(
        Path(model),
        output=None if output is None else Path(output),
        int8=int8,
        tolerance=tolerance,
        opset=read_value("opset", opset, int),
        compile_torch=measure_compiled,
        force=force,
        progress=TerminalProgress() if show_progress else SilentProgress(),
    )
