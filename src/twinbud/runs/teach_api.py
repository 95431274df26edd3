"""The flat Python API of ``twinbud teach``.

Torch is imported when the function is called, so that ``import twinbud`` is cheap.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from twinbud.core.progress import SilentProgress, TerminalProgress
from twinbud.core.torch_state import own_torch_state

if TYPE_CHECKING:
    from twinbud.config.keywords import TeachSettings
    from twinbud.runs.teach_result import TeachResult


@own_torch_state()
def teach(
    *,
    architecture: str,
    source: str,
    data: str | Path,
    output: str | Path,
    force: bool = False,
    resume: bool = False,
    checkpoint_seconds: float = 60.0,
    pixel_cache: bool = True,
    show_progress: bool = True,
    **settings: Unpack[TeachSettings],
) -> TeachResult:
    """Train a teacher of one's own: a network that learns the features of another one, without labels.

    Args:
        architecture: timm name of the network, which starts at random.
        source: The network whose features it learns, spelled as the teacher of ``train``.
        data: Folder of images, CSV file, or ``"phantom"`` (generated images). Images that the data or the setting
            ``split`` keep for validation or test are never opened.
        output: The teacher folder to make; ``train`` opens it as the teacher ``"local-dir:OUTPUT"``.
        force: Replace an earlier teacher in ``output``.
        resume: Continue an unfinished one.
        checkpoint_seconds: Seconds of training between two checkpoints.
        pixel_cache: Keep decoded images in the cache folder and read them from there.
        show_progress: Report on standard error.
        **settings: Any setting of ``twinbud.config.teaching``.

    Returns:
        Measurements of the features before and after, the history, and the folder.

    Raises:
        TwinbudError: Settings, images, networks or output folder cannot be used.
        Stopped: The system requested a stop; the same call with ``resume=True`` continues.

    Example:
        >>> import twinbud
        >>> taught = twinbud.teach(  # doctest: +SKIP
        ...     architecture="convnext_atto", source="dinov2-small", data="images", output="teacher-of-mine",
        ...     image_size=64, epochs=1, batch_size=8, show_progress=False,
        ... )
        >>> taught.metrics.num_train > taught.metrics.num_held_out  # doctest: +SKIP
        True
    """
    from twinbud.config.teaching import teach_config
    from twinbud.runs.teach import teach

    config = teach_config(
        {"data": str(data), **settings},
        architecture=architecture,
        source=source,
        output=Path(output),
        force=force,
        resume=resume,
        checkpoint_seconds=checkpoint_seconds,
        pixel_cache=pixel_cache,
    )
    return teach(config, TerminalProgress() if show_progress else SilentProgress())
