"""``twinbud.audit``: what is wrong with a set of images, part of the flat Python API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from twinbud.core.progress import SilentProgress, TerminalProgress
from twinbud.core.torch_state import own_torch_state

if TYPE_CHECKING:
    from twinbud.auditing.findings import Audit


@own_torch_state()
def audit(
    data: str | Path,
    *,
    split: str | Path | None = None,
    output: str | Path | None = None,
    data_root: str | Path | None = None,
    image_column: str = "image_path",
    label_column: str = "label",
    label_columns: str | None = None,
    patient_column: str = "patient_id",
    split_column: str = "split",
    patient_salt: str | Path | None = None,
    max_megapixels: float = 36.0,
    pixel_cache: bool = True,
    force: bool = False,
    show_progress: bool = True,
) -> Audit:
    """Look for what would mislead a classifier: copies, leaks, wrong labels, shortcuts, broken files.

    Args:
        data: Labelled images, as for ``train``.
        split: A split.csv to examine; None for the split in the data, if it has one.
        output: Folder to make with ``audit.html`` and ``audit.json``; None for no files.
        data_root: Local copy of the set that ``data`` names.
        image_column: CSV column of the image path.
        label_column: CSV column of the class name.
        label_columns: CSV columns of several labels, ``"A,B,C"``.
        patient_column: CSV column of the patient.
        split_column: CSV column with train, val or test.
        patient_salt: File with the secret that hashes patient ids of DICOM.
        max_megapixels: Leave out images with more pixels than this.
        pixel_cache: Keep thumbnails in the cache folder and read them from there.
        force: Replace ``output``.
        show_progress: Report on standard error.

    Returns:
        All findings; ``to_json`` gives what ``audit.json`` holds.

    Raises:
        TwinbudError: The source or the split cannot be read, no image can, or ``output`` is not free.

    Example:
        >>> import twinbud
        >>> found = twinbud.audit("images", output="audit", show_progress=False)  # doctest: +SKIP
        >>> len(found.identical), len(found.near_duplicates)  # doctest: +SKIP
        (0, 0)
    """
    from twinbud.auditing.examine import examine
    from twinbud.auditing.page import write_audit
    from twinbud.config.data_config import DataConfig
    from twinbud.config.loading import stage_config
    from twinbud.core.files import require_new_folder

    settings = {
        "data": str(data),
        "split": split,
        "data_root": data_root,
        "image_column": image_column,
        "label_column": label_column,
        "label_columns": label_columns,
        "patient_column": patient_column,
        "split_column": split_column,
        "patient_salt": patient_salt,
        "max_megapixels": max_megapixels,
        "skip_broken": True,
    }
    config = stage_config(DataConfig, settings)
    if output is not None:
        require_new_folder(Path(output), force=force)
    found = examine(config, TerminalProgress() if show_progress else SilentProgress(), pixel_cache=pixel_cache)
    if output is not None:
        write_audit(found, Path(output), force=force, max_megapixels=config.max_megapixels)
    return found
