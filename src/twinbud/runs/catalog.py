"""What there is to choose from, part of the flat Python API: public image sets, network families, widths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from twinbud.core.torch_state import own_torch_state

if TYPE_CHECKING:
    from twinbud.config.schema import Family
    from twinbud.data.datasets.listing import DatasetStatus
    from twinbud.models.family_listing import FamilyInfo, NetworkWidths


def datasets(data_root: str | Path | None = None) -> tuple[DatasetStatus, ...]:
    """List the public sets that ``train`` knows by name, and which are on this machine; nothing is downloaded.

    Sets of the Hugging Face hub (``"hf:OWNER/NAME"``) are not among them.

    Args:
        data_root: A folder with copies, as the setting ``data_root`` takes it; None for where sets are downloaded to.

    Returns:
        For each set its modality, task, classes, published counts, license and origin, and where copies are.

    Raises:
        TwinbudError: There is no such folder.

    Example:
        >>> import twinbud
        >>> len(twinbud.datasets())  # doctest: +SKIP
        15
    """
    from twinbud.data.datasets.listing import list_datasets

    return list_datasets(None if data_root is None else Path(data_root))


def families() -> tuple[FamilyInfo, ...]:
    """List the described families of networks, from which weights can be selected; no weights are opened.

    Returns:
        For each family its members, examples of teacher and student, and whether recovery supports it.

    Example:
        >>> import twinbud
        >>> [family.name for family in twinbud.families()][:2]  # doctest: +SKIP
        ['ViT', 'DINOv3/EVA']
    """
    from twinbud.models.family_listing import list_families

    return list_families()


@own_torch_state()
def widths(network: str, *, family: Family = "described") -> NetworkWidths:
    """List which tensors of a network share each width, and prove it on random weights of the network's size.

    Args:
        network: As ``train`` takes ``teacher``; its weights are not opened.
        family: ``"described"``, or ``"auto"`` to find the widths of any network of timm.

    Raises:
        TwinbudError: The network is unknown or of no described family, or a width cannot be proved.

    Example:
        >>> import twinbud
        >>> found = twinbud.widths("densenet121", family="auto")  # doctest: +SKIP
        >>> len(found.widths), found.relative_change < 1e-9  # doctest: +SKIP
        (120, True)
    """
    from twinbud.config.fields import read_value
    from twinbud.config.schema import Family
    from twinbud.models.family_listing import list_widths

    return list_widths(network, read_value("family", family, Family))
