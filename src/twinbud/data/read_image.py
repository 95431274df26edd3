"""Read one image file, of any format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from twinbud.config.reading import Axis


def read_image(
    path: str | Path,
    frame: int | None = None,
    window: str = "dicom",
    *,
    axis: Axis = "axial",
    volume: int | None = None,
) -> np.ndarray:
    """Read the pixels of one image, as the network sees them before resizing.

    Args:
        path: An image file of any format that ``train`` takes.
        frame: Index of the image in a file of several, counted from 0; None for a file that holds one.
        window: The intensity window, as the setting ``window`` spells it: ``"dicom"`` for the file's own, ``"auto"``,
            ``"lung"`` and other names, or ``"CENTER,WIDTH"``.
        axis: Direction of the slices of a volume, which ``frame`` counts: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        volume: Which volume of a file of several, counted from 0; None for a file that holds one.

    Returns:
        (H, W, 3) uint8, channels in the order red, green, blue; gray images have three equal channels.

    Raises:
        TwinbudError: The file cannot be read, holds no image, or several of which ``frame`` names none; or there is no
            such window.

    Example:
        >>> import twinbud
        >>> twinbud.read_image("images/dark/000.png").shape  # doctest: +SKIP
        (32, 32, 3)
    """
    from twinbud.config.data_config import DataConfig
    from twinbud.config.fields import read_value
    from twinbud.config.loading import stage_config
    from twinbud.data.formats.base import nothing_left_out
    from twinbud.data.formats.decoding import decode, without_warnings

    data = stage_config(DataConfig, {"window": window, "axis": axis, "volume": volume})
    number = read_value("frame", frame, int | None)
    with nothing_left_out(), without_warnings():
        return decode(
            Path(path),
            name=str(path),
            max_megapixels=data.max_megapixels,
            frame=number,
            window=data.reading.window_or_none,
            plane=data.reading.plane,
        )
