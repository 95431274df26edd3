"""The gate passes what computes the same as torch, and refuses everything else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from helpers.exporting import (
    CLASSES,
    FAMILIES,
    FAULTS,
    OPSET,
    TEMPERATURE,
    classifier_of,
    exported,
    faulty,
    gate_of,
    good,
    metadata_of,
    no_softmax,
)
from twinbud.core.errors import TwinbudError
from twinbud.exporting import gate as gate_module
from twinbud.exporting.gate import Gate, generated_images
from twinbud.exporting.network import Exporter
from twinbud.models.model_folder import ModelFolder
from twinbud.tasks.opening import open_task

STEP = {"swin": 4}
"""Every fourth fault, where the graph has a thousand nodes and opening it takes most of the time."""


def change_bias(model: onnx.ModelProto, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the bias of the last layer of a timm model."""
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "network.head.bias"]
    values = change(numpy_helper.to_array(bias)).astype(np.float32)
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))


def passes(family: str, file: bytes) -> bool:
    gate, _, metadata = good(family)
    try:
        gate.check(file, metadata)
    except TwinbudError as refusal:
        return not str(refusal).startswith("export: the ONNX file is not written: ")
    return True


@pytest.mark.parametrize("family", FAMILIES)
def test_a_good_export_passes_and_every_fault_in_it_is_refused(family: str) -> None:
    gate, file, metadata = good(family)
    result = gate.check(file, metadata)
    assert result.logit_difference < 1e-3
    assert result.scores["torch"].accuracy == result.scores["onnx"].accuracy
    assert result.scores["torch"].ece == pytest.approx(result.scores["onnx"].ece, abs=1e-3)
    changes = FAULTS[:: STEP.get(family, 1)]
    files = {change.__name__: faulty(file, change, seed=0) for change in changes}
    assert sum(changed is not None for changed in files.values()) >= len(changes) - 4
    assert [name for name, changed in files.items() if changed is not None and passes(family, changed)] == []


def test_every_kind_of_fault_has_a_place_in_some_family() -> None:
    files = [good(family)[1] for family in ("vit", "resnet")]
    assert [c.__name__ for c in FAULTS if not any(faulty(file, c, seed=0) for file in files)] == []


def test_a_tolerance_that_nothing_can_meet_is_refused_with_the_difference_that_was_measured() -> None:
    gate, file, metadata = good("vit")
    measured = gate.check(file, metadata).logit_difference
    with pytest.raises(TwinbudError, match=rf"differ from torch's by up to {measured:.2g}, more than 1e-12") as caught:
        gate.check(file, metadata, tolerance=1e-12)
    (advised,) = re.findall(r"--tolerance (\S+) ", str(caught.value))
    gate.check(file, metadata, tolerance=float(advised))


def test_a_logit_that_is_not_a_number_is_refused() -> None:
    gate, file, metadata = good("vit")
    model = onnx.load_model_from_string(file)
    change_bias(model, lambda values: np.full_like(values, np.nan))
    with pytest.raises(TwinbudError, match="by up to inf"):
        gate.check(model.SerializeToString(), metadata)


def test_what_is_no_onnx_file_is_refused() -> None:
    gate, _, metadata = good("vit")
    with pytest.raises(TwinbudError, match="onnxruntime cannot read it"):
        gate.check(b"not a model", metadata)


def test_a_file_that_takes_one_image_only_is_refused() -> None:
    gate, file, metadata = good("vit")
    model = onnx.load_model_from_string(file)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(TwinbudError, match="onnxruntime fails on a batch of shape"):
        gate.check(model.SerializeToString(), metadata)


def test_an_output_of_another_shape_is_refused() -> None:
    gate, file, metadata = good("vit")
    model = onnx.load_model_from_string(file)
    (last,) = [node for node in model.graph.node if "probabilities" in node.output]
    last.output[:] = ["whole"]
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
    model.graph.node.append(helper.make_node("Gather", ["whole", "first"], ["probabilities"], axis=1))
    del model.graph.output[0].type.tensor_type.shape.dim[1]
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1
    with pytest.raises(TwinbudError, match="an output is float32"):
        gate.check(model.SerializeToString(), metadata)


def test_probabilities_are_compared_where_the_logits_are_right() -> None:
    gate, file, metadata = good("resnet")
    changed = faulty(file, no_softmax, seed=0)
    assert changed is not None
    with pytest.raises(TwinbudError, match="its probabilities differ from those of its logits"):
        gate.check(changed, metadata)


def test_a_tie_may_be_decided_otherwise_and_is_counted() -> None:
    """Two classes with the same weights, far above the others: a millionth decides."""
    model_folder = classifier_of("mixer")
    head = model_folder.model.get_classifier()
    head.weight[1] = head.weight[0]
    head.bias[2:] -= 100
    head.bias[:2] = torch.tensor([4e-6, 0.0])
    model = exported(model_folder)
    change_bias(model, lambda values: np.concatenate([[0.0, 4e-6], values[2:]]))
    found = gate_of(model_folder).check(model.SerializeToString(), metadata_of(model_folder))
    assert 0 < found.num_ties <= found.num_images


def test_a_decision_that_differs_by_more_than_rounding_is_refused() -> None:
    gate, file, metadata = good("vit")
    model = onnx.load_model_from_string(file)
    change_bias(model, lambda values: values + np.array([3, -3, 0, 0, 0]))
    with pytest.raises(TwinbudError, match=r"[1-9]\d* of 22 decisions differ from torch's"):
        gate.check(model.SerializeToString(), metadata, tolerance=10)


@pytest.mark.parametrize("name", ["ordinal", "multi-label"])
def test_the_probabilities_of_other_tasks_are_those_of_the_task(name: str) -> None:
    classes = (*CLASSES, "f") if name == "ordinal" else CLASSES
    task = open_task("ordinal" if name == "ordinal" else "multi-label", classes)
    plain = classifier_of("mixer")
    model_folder = ModelFolder(model=plain.model, task=task, preprocessing=plain.preprocessing)
    gate = Gate(model_folder, [], temperature=TEMPERATURE)
    result = gate.check(exported(model_folder).SerializeToString(), metadata_of(model_folder))
    assert result.probability_difference < 1e-5
    assert result.scores == {}
    said = metadata_of(model_folder)
    assert said["task"] == name
    assert json.loads(said["label_names"]) == list(classes)
    assert ("thresholds" in said) == (name == "multi-label")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("accuracy", "its accuracy on 6 images is worse than torch's by 0.00 points, more than -1"),
        ("coverage", "its coverage on 6 images is worse than torch's by 0.00 points, more than -1"),
        ("calibration error", "its calibration error on 6 images is worse than torch's by "),
    ],
)
def test_an_int8_file_is_judged_by_its_scores(name: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, file, metadata = good("vit")
    gate = gate_of(gate.model_folder, members=lambda probabilities_NC: probabilities_NC > 0.2)
    scores = gate.check_quantized(file, metadata).scores
    assert scores["onnx"].accuracy == scores["torch"].accuracy
    assert scores["onnx"].coverage == scores["torch"].coverage
    monkeypatch.setitem(gate_module.LARGEST_LOSS, name, -0.01)
    with pytest.raises(TwinbudError, match=f"the int8 file is not written: {told}"):
        gate.check_quantized(file, metadata)


def test_an_int8_file_is_judged_by_its_decisions_where_nothing_has_a_label() -> None:
    gate, file, metadata = good("vit")
    changed = onnx.load_model_from_string(file)
    change_bias(changed, lambda values: values + 5 * (np.arange(len(values)) == 0))
    with pytest.raises(TwinbudError, match=r"\d+\.\d\d % of the decisions on \d+ images differ from torch's"):
        Gate(gate.model_folder, [], temperature=TEMPERATURE).check_quantized(changed.SerializeToString(), metadata)


def test_coverage_that_is_lost_refuses_a_file_whose_logits_are_near_enough() -> None:
    """A threshold between two probabilities that differ by less than the tolerance."""
    gate, file, metadata = good("vit")
    assert gate.labels is not None
    label = int(gate.labels[0])
    changed = onnx.load_model_from_string(file)
    change_bias(changed, lambda values: values - 0.01 * (np.arange(len(values)) == label))
    right = gate.expected.probabilities[0, label]
    strict = gate_of(gate.model_folder, members=lambda probabilities_NC: probabilities_NC > right - 1e-4)
    with pytest.raises(TwinbudError, match=r"its coverage on 6 images is worse .* Leave --tolerance at 0\.001"):
        strict.check(changed.SerializeToString(), metadata, tolerance=0.1)


def test_rounding_past_a_threshold_is_no_fault() -> None:
    gate, file, metadata = good("vit")
    assert gate.labels is not None
    label = int(gate.labels[0])
    changed = onnx.load_model_from_string(file)
    change_bias(changed, lambda values: values - 1e-4 * (np.arange(len(values)) == label))
    right = gate.expected.probabilities[0, label]
    strict = gate_of(gate.model_folder, members=lambda probabilities_NC: probabilities_NC > right - 1e-6)
    scores = strict.check(changed.SerializeToString(), metadata).scores
    assert scores["onnx"].coverage != scores["torch"].coverage


def test_generated_images_have_many_sizes_and_batches_of_one_and_more() -> None:
    batches = generated_images(28)
    assert len({batch[0].shape for batch in batches}) >= 6
    assert {len(batch) for batch in batches} == {1, 3, 5}
    assert batches[0][0].shape == (28, 28, 3)
    assert max(batch[0].shape[0] for batch in batches) > 4 * 28
    assert generated_images(1)


def test_the_file_says_its_opset() -> None:
    model = onnx.load_model_from_string(good("vit")[1])
    assert {entry.key: entry.value for entry in model.metadata_props}["opset"] == str(OPSET)


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_the_file_names_no_folder_of_this_machine(exporter: Exporter) -> None:
    file = exported(classifier_of("vit"), exporter).SerializeToString()
    home = str(Path(__file__).parents[2]).encode()
    assert [text for text in (b".py", b"site-packages", home) if text in file] == []
