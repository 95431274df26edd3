"""Small classifiers of every family to export, and faults to put into what was exported."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import numpy as np
import onnx
import timm
import torch
from onnx import helper, numpy_helper

from helpers.builders import CONVNEXT, MIXER, SMALL_NETWORKS, SWIN, VIT
from helpers.convolutional import convolutional
from twinbud.core.errors import TwinbudError
from twinbud.data.preprocessing import Preprocessing
from twinbud.exporting.gate import Gate, open_session
from twinbud.exporting.network import INPUT, OUTPUTS, ExportedClassifier, Exporter, export_network
from twinbud.exporting.onnx_file import describe, join
from twinbud.models.families.base import TimmModel
from twinbud.models.invariance import calibrate, randomize
from twinbud.models.model_folder import ModelFolder
from twinbud.tasks.opening import open_task

CLASSES = ("a", "b", "c", "d", "e")
TEMPERATURE = 1.7
OPSET = 20
"""The newest that both of torch's exporters write."""
TIMM: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit": ("vit_tiny_patch16_224", VIT, 28),
    "convnext": ("convnext_tiny", CONVNEXT, 32),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, 32),
    "mixer": ("small_mixer", MIXER, 32),
}
OTHERS = {
    "vgg": "vgg-batch-norm",
    "resnet": "resnet-basic",
    "efficientnet": "efficientnet",
    "mobilenetv3": "mobilenetv3",
    "mobilenetv4": "mobilenetv4",
}
FAMILIES = (*TIMM, *OTHERS)
EXPORTER: dict[str, Exporter] = {"vgg": "dynamo"}
"""Tracing takes a tenth of the time, but cannot translate the pooling of a small VGG."""


def classifier_of(family: str, seed: int = 0) -> ModelFolder:
    """A small network of a family, every tensor of which matters, for five classes."""
    with torch.random.fork_rng(devices=[]):
        if family in OTHERS:
            model, image_size = convolutional(OTHERS[family])
        else:
            architecture, arguments, image_size = TIMM[family]
            make = SMALL_NETWORKS.get(architecture) or partial(timm.create_model, architecture)
            model = make(num_classes=len(CLASSES), **arguments)
    _sensitize(randomize(model, seed), image_size)
    return ModelFolder(
        model=model.eval().requires_grad_(False),
        task=open_task("single", CLASSES),
        preprocessing=Preprocessing(image_size=image_size, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)),
    )


def _sensitize(model: TimmModel, image_size: int) -> None:
    """Let the logits of noise vary by about 2, as those of a trained network do, and convert the model to float32."""
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((16, 3, image_size, image_size)))
    calibrate(model, noise)
    head = model.get_classifier()
    with torch.no_grad():
        logits_NK = model(noise)
        head.weight.mul_(2 / logits_NK.std(dim=0)[:, None])
        head.bias.sub_(model(noise).mean(dim=0))
    model.float()


def metadata_of(model_folder: ModelFolder) -> dict[str, str]:
    return describe(model_folder, {}, temperature=TEMPERATURE, precision="float32")


def exported(model_folder: ModelFolder, exporter: Exporter = "legacy") -> onnx.ModelProto:
    """The whole ONNX model of a classifier."""
    size = model_folder.preprocessing.image_size
    network = export_network(ExportedClassifier(model_folder, TEMPERATURE).eval(), size, exporter=exporter, opset=OPSET)
    return join(network, size, metadata_of(model_folder))


def gate_of(
    model_folder: ModelFolder, num_images: int = 6, members: Callable[[np.ndarray], np.ndarray] | None = None
) -> Gate:
    """A gate with noise of two sizes as the images of the run."""
    generator = np.random.default_rng(1)
    shapes = [(40, 40 if number % 3 else 60, 3) for number in range(num_images)]
    images = [generator.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    labels = generator.integers(0, len(CLASSES), num_images)
    return Gate(model_folder, images, labels=labels, temperature=TEMPERATURE, members=members)


@cache
def good(family: str) -> tuple[Gate, bytes, dict[str, str]]:
    """A gate, a file that passes it and its metadata; the same for all tests."""
    model_folder = classifier_of(family)
    file = exported(model_folder, EXPORTER.get(family, "legacy")).SerializeToString()
    return gate_of(model_folder), file, metadata_of(model_folder)


Change = Callable[[onnx.ModelProto, np.random.Generator], bool]
"""Puts a fault into a model; says whether it found a place for it."""


def faulty(file: bytes, change: Change, seed: int) -> bytes | None:
    """A copy of a file with a fault; None where it has no place for it."""
    model = onnx.load_model_from_string(file)
    return model.SerializeToString() if change(model, np.random.default_rng(seed)) else None


def _set(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))


def _choose(model: onnx.ModelProto, random: np.random.Generator, fits: Callable[[np.ndarray], bool]) -> Any:
    """Choose one of the float32 weights that fit."""
    floats = [one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT]
    chosen = [one for one in floats if fits(numpy_helper.to_array(one))]
    return chosen[random.integers(len(chosen))] if chosen else None


def _change_weight(
    model: onnx.ModelProto,
    random: np.random.Generator,
    fits: Callable[[np.ndarray], bool],
    change: Callable[[np.ndarray], np.ndarray],
) -> bool:
    tensor = _choose(model, random, fits)
    if tensor is not None:
        _set(tensor, change(numpy_helper.to_array(tensor).copy()))
    return tensor is not None


def _is_vector(values: np.ndarray) -> bool:
    """Whether it is a bias or a scale."""
    return values.ndim == 1 and len(values) > 1 and float(np.abs(values).max()) > 0.01


def _is_matrix(values: np.ndarray) -> bool:
    return values.ndim in (2, 4) and min(values.shape[:2]) > 1


def zeroed_vector(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """A bias, or the scale of a norm, that was lost."""
    return _change_weight(model, random, _is_vector, np.zeros_like)


def rolled_vector(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """A bias whose channels are shifted by one."""
    return _change_weight(model, random, _is_vector, lambda values: np.roll(values, 1))


def reversed_rows(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """A weight whose first axis runs backwards."""
    return _change_weight(model, random, _is_matrix, lambda values: values[::-1])


def scaled_weight(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """A weight that is 5 % too large."""
    return _change_weight(model, random, _is_matrix, lambda values: values * np.float32(1.05))


def transposed_weight(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """A square weight with its axes exchanged."""
    return _change_weight(
        model, random, lambda v: _is_matrix(v) and v.shape[0] == v.shape[1], lambda values: values.swapaxes(0, 1)
    )


def swapped_queries_and_keys(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """The joint projection of an attention, with queries in the place of keys."""

    def swap(values: np.ndarray) -> np.ndarray:
        axis = int(values.shape[1] == 3 * values.shape[0])
        queries, keys, rest = np.split(values, 3, axis=axis)
        return np.concatenate([keys, queries, rest], axis=axis)

    return _change_weight(
        model, random, lambda v: v.ndim == 2 and max(v.shape) == 3 * min(v.shape) and len(CLASSES) not in v.shape, swap
    )


def another_mean(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """One channel's mean or standard deviation of another model."""
    fitting = [tensor for tensor in _constants(model) if tuple(tensor.dims) in ((1, 3, 1, 1), (3, 1, 1))]
    if fitting:
        tensor = fitting[random.integers(len(fitting))]
        values = numpy_helper.to_array(tensor).copy()
        values.flat[random.integers(3)] += 0.02
        _set(tensor, values)
    return bool(fitting)


def swapped_classes(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """Two names exchanged."""
    (entry,) = [entry for entry in model.metadata_props if entry.key == "label_names"]
    first, second = random.choice(CLASSES, 2, replace=False)
    entry.value = entry.value.translate(str.maketrans(first + second, second + first))
    return True


def swapped_outputs(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """Two columns of logits and probabilities exchanged, at the end of the graph."""
    order = np.arange(len(CLASSES))
    one = random.integers(len(CLASSES) - 1)
    order[[one, one + 1]] = order[[one + 1, one]]
    model.graph.initializer.append(numpy_helper.from_array(order, "fault_order"))
    for output in model.graph.output:
        _rename_result(model, output.name, f"fault_{output.name}")
        model.graph.node.append(
            helper.make_node("Gather", [f"fault_{output.name}", "fault_order"], [output.name], axis=1)
        )
    return True


def _rename_result(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new


def _nodes(model: onnx.ModelProto, *kinds: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in kinds]


def _skip(node: onnx.NodeProto, place: int = 0) -> None:
    """Replace a node by one of its inputs."""
    node.CopyFrom(helper.make_node("Identity", [node.input[place]], list(node.output)))


def no_softmax(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """Logits where probabilities should be."""
    del random
    _skip(_nodes(model, "Softmax")[-1])
    return True


def stale_temperature(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """Probabilities of another temperature than the file says."""
    stale = random.choice([1.0, 1.6, 1.75, 2.2])
    found = False
    for tensor in _constants(model):
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and values.size == 1 and np.isclose(values, TEMPERATURE, rtol=1e-6):
            _set(tensor, np.full_like(values, stale))
            found = True
    return found


def _constants(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    inline = [node.attribute[0].t for node in _nodes(model, "Constant") if node.attribute[0].name == "value"]
    return [*model.graph.initializer, *inline]


def no_activation(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """A nonlinearity that was left out."""
    nodes = _nodes(model, "Relu", "Gelu", "Erf", "Sigmoid")
    if nodes:
        _skip(nodes[random.integers(len(nodes))])
    return bool(nodes)


def no_shortcut(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """A residual connection that was left out."""
    made = {name for node in model.graph.node if node.op_type != "Constant" for name in node.output}
    nodes = [node for node in _nodes(model, "Add") if {*node.input} <= made]
    if nodes:
        _skip(nodes[random.integers(len(nodes))], int(random.integers(2)))
    return bool(nodes)


def another_epsilon(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """A norm with an epsilon of 0.1."""
    nodes = _nodes(model, "LayerNormalization", "BatchNormalization")
    if nodes:
        node = nodes[random.integers(len(nodes))]
        kept = [attribute for attribute in node.attribute if attribute.name != "epsilon"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("epsilon", 0.1)])
    return bool(nodes)


def blue_first(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """Channels in another order."""
    del random
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "fault_channels"))
    _after(model, "image", lambda given, made: helper.make_node("Gather", [given, "fault_channels"], [made], axis=3))
    return True


def only_the_first_image(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """A batch whose images all get the answer of the first one."""
    del random
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "fault_first"))
    size = helper.make_node("Shape", ["pixels"], ["fault_shape"])
    first = helper.make_node("Gather", ["pixels", "fault_first"], ["fault_one"], axis=0)
    repeat = helper.make_node("Expand", ["fault_one", "fault_shape"], ["fault_pixels"])
    for node in list(model.graph.node)[1:]:
        node.input[:] = ["fault_pixels" if name == "pixels" else name for name in node.input]
    for place, node in enumerate((size, first, repeat), start=1):
        model.graph.node.insert(place, node)
    return True


def _after(model: onnx.ModelProto, name: str, make: Callable[[str, str], onnx.NodeProto]) -> None:
    """Put a node between a tensor and whatever reads it."""
    for node in model.graph.node:
        node.input[:] = [f"fault_{name}" if read == name else read for read in node.input]
    model.graph.node.insert(0, make(name, f"fault_{name}"))


def turned_image(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """Height and width exchanged."""
    del random
    _after(model, "image", lambda given, made: helper.make_node("Transpose", [given], [made], perm=[0, 2, 1, 3]))
    return True


def onnx_resize(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """ONNX's own Resize, with a random rule, instead of twinbud's."""
    size = int(numpy_helper.to_array(_constant_of(model, 1, "side")))
    rules: list[dict[str, Any]] = [
        {"mode": "linear", "antialias": 1},
        {"mode": "cubic", "antialias": 0, "cubic_coeff_a": -0.5},
        {"mode": "cubic", "antialias": 1, "cubic_coeff_a": -0.75},
        {"mode": "nearest"},
    ]
    steps = [
        helper.make_node("Transpose", ["image"], ["fault_planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Shape", ["fault_planes"], ["fault_kept"], start=0, end=2),
        helper.make_node("Concat", ["fault_kept", "fault_side"], ["fault_sizes"], axis=0),
        helper.make_node(
            "Resize", ["fault_planes", "", "", "fault_sizes"], ["pixels"], **rules[random.integers(len(rules))]
        ),
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.array([size, size]), "fault_side"))
    model.graph.node.pop(0)
    for place, node in enumerate(steps):
        model.graph.node.insert(place, node)
    return True


def _constant_of(model: onnx.ModelProto, function: int, name: str) -> onnx.TensorProto:
    (node,) = [node for node in model.functions[function].node if node.output[0] == name]
    return node.attribute[0].t


def _rounding(model: onnx.ModelProto) -> onnx.GraphProto:
    """The branch of the resize that interpolates."""
    (node,) = [node for node in model.functions[1].node if node.op_type == "If"]
    return next(attribute.g for attribute in node.attribute if attribute.name == "else_branch")


def another_bicubic(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """A constant of the bicubic weights that is off."""
    names = ("three_halves", "five_halves", "four", "five", "eight", "minus_half")
    chosen = names[random.integers(len(names))]
    (node,) = [node for node in _rounding(model).node if node.output[0] == chosen]
    _set(node.attribute[0].t, numpy_helper.to_array(node.attribute[0].t) * 1.1)
    return True


def no_antialias(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """Bicubic weights that do not widen where the image shrinks."""
    del random
    (node,) = [node for node in _rounding(model).node if node.output[0] == "widening"]
    node.CopyFrom(helper.make_node("Identity", ["one"], ["widening"]))
    return True


def shifted_middle(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """A resize that takes corners for the middle of a pixel."""
    del random
    (node,) = [node for node in _rounding(model).node if node.output[0] == "output_middle"]
    node.CopyFrom(helper.make_node("Identity", ["output"], ["output_middle"]))
    return True


def no_rounding(model: onnx.ModelProto, random: np.random.Generator) -> bool:
    """Levels that are cut off, not rounded."""
    del random
    (node,) = [node for node in _rounding(model).node if node.output[0] == "raised"]
    node.CopyFrom(helper.make_node("Identity", ["exact"], ["raised"]))
    return True


FAULTS: tuple[Change, ...] = (
    zeroed_vector,
    rolled_vector,
    reversed_rows,
    scaled_weight,
    transposed_weight,
    swapped_queries_and_keys,
    another_mean,
    swapped_classes,
    swapped_outputs,
    no_softmax,
    stale_temperature,
    no_activation,
    no_shortcut,
    another_epsilon,
    blue_first,
    only_the_first_image,
    turned_image,
    onnx_resize,
    another_bicubic,
    no_antialias,
    shifted_middle,
    no_rounding,
)


def missed_faults(family: str, seeds: Iterable[int]) -> list[str]:
    """Put one fault after the other into the file of a family; return those that the gate did not see.

    Each seed gives one fault, of the kinds in turns. A kind that the family has no place for gives way to the next one,
    and so does a change that computes the same: the bias of a Mixer's tokens, which the next norm removes, or a ReLU
    whose input is never negative.
    """
    gate, file, metadata = good(family)
    missed = []
    for number, seed in enumerate(seeds):
        for step in range(len(FAULTS)):
            kind = FAULTS[(number + step) % len(FAULTS)]
            changed = faulty(file, kind, seed)
            if changed is None:
                continue
            try:
                gate.check(changed, metadata)
            except TwinbudError:
                break
            if not _computes_the_same(file, changed, gate.model_folder.preprocessing.image_size):
                missed.append(f"{kind.__name__}, seed {seed}")
                break
    return missed


def _computes_the_same(one: bytes, other: bytes, image_size: int) -> bool:
    """Whether two files differ only by rounding on 200 images that the gate has not seen, half of them plain."""
    generator = np.random.default_rng(5)
    noise = generator.integers(0, 256, (100, image_size, image_size, 3), dtype=np.uint8)
    plain = np.broadcast_to(generator.integers(0, 256, (100, 1, 1, 3), dtype=np.uint8), noise.shape)
    images = np.concatenate([noise, plain])
    answers = [open_session(file).run(list(OUTPUTS), {INPUT: images}) for file in (one, other)]
    return all(float(np.abs(a - b).max()) < 5e-5 for a, b in zip(*answers, strict=True))


def sound_export(family: str, seed: int, exporter: Exporter) -> str | None:
    """Export a network with weights of its own; return why the gate refused it, None if it passed."""
    model_folder = classifier_of(family, seed)
    exporter = EXPORTER.get(family, exporter)
    try:
        gate_of(model_folder).check(exported(model_folder, exporter).SerializeToString(), metadata_of(model_folder))
    except TwinbudError as refusal:
        return str(refusal)
    return None
