"""One ONNX model of resize and network, with the facts that its users need.

The bytes that pass the gate are the bytes that are written, so nothing that the gate measures is in them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinbud.core.environment import package_version
from twinbud.core.errors import TwinbudError
from twinbud.core.extras import import_extra
from twinbud.data.formats.mapped import sha256
from twinbud.exporting.network import EXTRA, INPUT, PIXELS
from twinbud.exporting.resize import DOMAIN, resize_functions
from twinbud.models.model_folder import ModelFolder

if TYPE_CHECKING:
    from onnx import ModelProto

_CHECKOUT = "a checkout that is not installed"
OPSET = 23
"""Version of ONNX's operators that a file uses unless told otherwise."""
OPSETS = range(18, 24)
"""Versions that torch's exporter writes and onnxruntime reads."""
_IR_VERSION = 10
"""Version of the file format; onnxruntime reads it since 1.18."""


def require_opset(opset: int) -> None:
    """Refuse a version of ONNX's operators that cannot be written.

    Raises:
        TwinbudError: It is not one of ``OPSETS``.
    """
    if opset not in OPSETS:
        problem = f"'{opset}' is not an opset from {OPSETS[0]} to {OPSETS[-1]}"
        raise TwinbudError(problem, where="--opset", fix=f"Leave it out for {OPSET}")


def describe(
    model_folder: ModelFolder,
    digests: Mapping[str, str],
    *,
    temperature: float,
    precision: str,
    trust: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Return the metadata of a file: what its user needs to know, as texts, JSON where they are not single words.

    Args:
        model_folder: What is exported.
        digests: SHA-256 of each file of the model folder.
        temperature: The temperature of the file.
        precision: ``float32`` or ``int8``.
        trust: What a calibrated run knows beside its temperature, by name.
    """
    task = {"task": model_folder.task.name, **model_folder.task.to_json()}
    return {
        "label_names": json.dumps(list(model_folder.classes), ensure_ascii=False),
        **{name: value if isinstance(value, str) else json.dumps(value) for name, value in task.items()},
        **{name: json.dumps(value, ensure_ascii=False) for name, value in (trust or {}).items()},
        "temperature": repr(temperature),
        "image_size": str(model_folder.preprocessing.image_size),
        "preprocessing": json.dumps(model_folder.preprocessing.to_json()),
        "precision": precision,
        "model_sha256": json.dumps(dict(digests)),
        "twinbud_version": package_version("twinbud") or _CHECKOUT,
    }


def digests_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the files of a model folder that decide what the file computes."""
    names = ("config.json", "model.safetensors", "trust.json")
    return {name: sha256((folder / name).read_bytes()).hex() for name in names if (folder / name).exists()}


def join(network: ModelProto, image_size: int, metadata: Mapping[str, str]) -> ModelProto:
    """Put the resize before a network and add the metadata.

    Args:
        network: A model from ``pixels`` to ``probabilities`` and ``logits``; it is not changed.
        image_size: S, in pixels.
        metadata: See ``describe``; the opset is added.

    Returns:
        A model from ``image``, uint8 (N, H, W, 3) with any N, H and W.
    """
    onnx = import_extra("onnx", EXTRA, where="export")
    opset = opset_of(network)
    whole = onnx.ModelProto()
    whole.CopyFrom(network)
    whole.ir_version = _IR_VERSION
    whole.producer_name, whole.producer_version = "twinbud", package_version("twinbud") or _CHECKOUT
    del whole.graph.input[:]
    image = onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.UINT8, ["N", "H", "W", 3])
    whole.graph.input.append(image)
    first, *others = resize_functions(image_size, opset)
    whole.graph.node.insert(0, onnx.helper.make_node(first.name, [INPUT], [PIXELS], domain=DOMAIN))
    whole.functions.extend([first, *others])
    whole.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    _remove_origins(whole)
    onnx.helper.set_model_props(whole, {**metadata, "opset": str(opset)})
    return whole


def _remove_origins(message: Any) -> None:
    """Clear the notes of torch's exporter at every node, which have the source files of this machine with their paths.

    Args:
        message: A part of a model; it is changed, and so are its parts.
    """
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in value if isinstance(value, Iterable) else (value,):
                _remove_origins(part)


def opset_of(model: ModelProto) -> int:
    """Return the version of ONNX's operators that a model uses."""
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
