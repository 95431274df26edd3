"""``twinbud.explain``: what predictions depend on, part of the flat Python API."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from twinbud.core.progress import SilentProgress, TerminalProgress
from twinbud.core.torch_state import own_torch_state

if TYPE_CHECKING:
    from twinbud.explaining.explanation import Explanations, MapKind


@own_torch_state()
def explain(
    model: str | Path,
    images: str | Path | Iterable[str | Path] | None = None,
    *,
    output: str | Path | None = None,
    label: str | None = None,
    map: MapKind = "grad-cam",
    skip_broken: bool = False,
    max_megapixels: float = 36.0,
    force: bool = False,
    show_progress: bool = True,
) -> Explanations:
    """Map what the predictions of a model depend on, and check whether the maps mean anything.

    Args:
        model: A run folder or, with ``images``, its ``model`` folder.
        images: An image, a folder that is searched for images, or several of them. None: some right and the most
            confident wrong answers of the run's own test part, which then are in the run's report, too.
        output: Folder to make with a picture for each image, ``explanations.csv`` and ``explanations.html``. None: no
            files or, without ``images``, the folder ``explanations`` in the run.
        label: Explain this class for every image; None for what is predicted, of several labels the most probable one.
        map: ``"grad-cam"``, or ``"rollout"`` for the attention of a ViT, which has no class.
        skip_broken: Leave out images that cannot be read.
        max_megapixels: Refuse images with more pixels than this.
        force: Replace ``output``.
        show_progress: Report on standard error.

    Returns:
        For each image its map, in [0, 1], with what was explained and the verdict of the checks; and the check of the
        model with random weights.

    Raises:
        TwinbudError: There is no model, or it has no such label or map; the run is not finished; an image cannot be
            read; or ``output`` exists.

    Example:
        >>> import twinbud
        >>> found = twinbud.explain("runs/first", "images", output="maps", show_progress=False)  # doctest: +SKIP
        >>> found.kind  # doctest: +SKIP
        'grad-cam'
    """
    from typing import get_args

    from twinbud.config.data_config import DataConfig
    from twinbud.config.fields import read_paths
    from twinbud.config.loading import stage_config
    from twinbud.core.errors import unknown_choice
    from twinbud.explaining.explain import explain_images, explain_run
    from twinbud.explaining.explanation import MapKind

    reading = stage_config(DataConfig, {"skip_broken": skip_broken, "max_megapixels": max_megapixels})
    if map not in get_args(MapKind):
        raise unknown_choice("--map", map, get_args(MapKind))
    progress = TerminalProgress() if show_progress else SilentProgress()
    folder = Path(output) if output is not None else None
    if images is None:
        return explain_run(Path(model), output=folder, label=label, kind=map, force=force, progress=progress)
    return explain_images(
        Path(model),
        read_paths("images", images),
        output=folder,
        label=label,
        kind=map,
        skip_broken=reading.skip_broken,
        max_megapixels=reading.max_megapixels,
        force=force,
        progress=progress,
    )
