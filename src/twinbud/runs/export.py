"""From a finished run, or a model folder, to one checked ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinbud.core.errors import TwinbudError
from twinbud.core.extras import import_extra
from twinbud.core.files import require_new_file, write_bytes
from twinbud.core.progress import Progress, SilentProgress
from twinbud.core.typed_json import to_json
from twinbud.exporting.gate import TOLERANCE, Gate, GateResult
from twinbud.exporting.latency import measure_latency, speedup
from twinbud.exporting.network import EXPORTERS, EXTRA, ExportedClassifier, Exporter, export_network
from twinbud.exporting.onnx_file import OPSET, describe, digests_of, join, require_opset
from twinbud.exporting.quantize import quantize
from twinbud.models.model_folder import ModelFolder
from twinbud.runs.classifier import Classifier, open_classifier
from twinbud.runs.export_images import GeneratedImages, TestPartImages
from twinbud.runs.run_dir import CONFIG
from twinbud.trust.record import Trust

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True, kw_only=True)
class ExportRow:
    """One way to run the classifier.

    Attributes:
        name: ``onnx float32``, ``onnx int8``, ``torch`` or ``torch, compiled``.
        num_bytes: Size of the file, or of ``model.safetensors``.
        latency_seconds: Median of one image, by the number of threads; those for which this process has cores.
        accuracy: On the run's test images, in [0, 1]; None without labels.
        ece: Expected calibration error there, in [0, 1]; None without labels.
        coverage: Share of the images there whose prediction set contains the right class, in [0, 1]; None without
            labels or prediction sets.
    """

    name: str
    num_bytes: int
    latency_seconds: Mapping[int, float]
    accuracy: float | None
    ece: float | None
    coverage: float | None


@dataclass(frozen=True, kw_only=True)
class Export:
    """The result of ``export_model``.

    Attributes:
        file: The ONNX file.
        exporter: Which of torch's exporters wrote the network.
        gate: What was compared before the file was written, and how near it is to torch.
        rows: Sizes, latencies and accuracies of the file and of torch.
        notes: Sentences about the images that were compared, and about what could not be measured.
    """

    file: Path
    exporter: Exporter
    gate: GateResult
    rows: tuple[ExportRow, ...]
    notes: tuple[str, ...]


def export_model(
    folder: Path,
    *,
    output: Path | None = None,
    int8: bool = False,
    tolerance: float = TOLERANCE,
    opset: int = OPSET,
    force: bool = False,
    compile_torch: bool = True,
    progress: Progress | None = None,
) -> Export:
    """Write one ONNX file with resize, network, temperature and probabilities, if it passes the gate.

    Args:
        folder: Finished run, or model folder.
        output: The file; by default beside the folder, ``NAME.onnx`` or ``NAME.int8.onnx``.
        int8: Quantize to 8 bits, where that is faster on this machine and as accurate.
        tolerance: Largest difference of a logit from torch's, in float32.
        opset: Version of ONNX's operators.
        force: Replace the file.
        compile_torch: Measure compiled torch as well, which takes a minute.
        progress: Receives progress; silent by default.

    Raises:
        TwinbudError: There is no finished run and no model folder, its images are missing, no file passes the gate, or
            ``output`` exists.
    """
    require_opset(opset)
    for package in ("onnx", "onnxruntime", "onnxscript"):
        import_extra(package, EXTRA, where="export")
    progress = progress or SilentProgress()
    classifier = open_classifier(folder)
    model_folder, trust = _calibrated(classifier), classifier.trusted and classifier.trusted.trust
    output = output or folder.resolve().with_name(f"{folder.resolve().name}{'.int8' if int8 else ''}.onnx")
    require_new_file(output, force=force)
    if int8 and not _is_run(folder):
        problem = "int8 needs training images, and a model folder has none"
        raise TwinbudError(problem, where="export --int8", fix="Give the run")
    images = TestPartImages.of(folder, model_folder, progress) if _is_run(folder) else GeneratedImages()
    temperature = trust.temperature if trust else 1.0
    members = trust.sets.members if trust and trust.sets else None
    gate = Gate(model_folder, images, labels=images.labels, temperature=temperature, members=members)
    maker = _Maker(model_folder, digests_of(_weights(folder)), temperature, _to_tell(trust), opset)
    network, file, result, exporter = _first_that_passes(maker, gate, tolerance, progress)
    files = {"onnx float32": file}
    results = {"onnx float32": result}
    if int8 and isinstance(images, TestPartImages):
        file, result = _quantized(maker, gate, network, file, images, progress)
        files["onnx int8"], results["onnx int8"] = file, result
    progress.note("measuring the time of one image")
    latency = measure_latency(files, maker.classifier, maker.image_size, compile_torch=compile_torch)
    write_bytes(output, file)
    sizes = {name: len(contents) for name, contents in files.items()}
    weights = (_weights(folder) / "model.safetensors").stat().st_size
    rows = (_row(name, sizes.get(name, weights), latency[name], results.get(name, result)) for name in latency)
    notes = (images.note, *(() if 2 in latency["torch"] else ("Two threads were not measured: there is one core.",)))
    return Export(file=output, exporter=exporter, gate=result, rows=tuple(rows), notes=notes)


@dataclass(frozen=True)
class _Maker:
    """Makes files of one classifier."""

    model_folder: ModelFolder
    digests: Mapping[str, str]
    temperature: float
    trust: Mapping[str, Any]
    opset: int

    @property
    def image_size(self) -> int:
        return self.model_folder.preprocessing.image_size

    @property
    def classifier(self) -> ExportedClassifier:
        return ExportedClassifier(self.model_folder, self.temperature).eval()

    def network(self, exporter: Exporter) -> ModelProto:
        return export_network(self.classifier, self.image_size, exporter=exporter, opset=self.opset)

    def metadata(self, precision: str) -> dict[str, str]:
        return describe(
            self.model_folder, self.digests, temperature=self.temperature, trust=self.trust, precision=precision
        )

    def file(self, network: ModelProto, precision: str) -> bytes:
        return join(network, self.image_size, self.metadata(precision)).SerializeToString()


def _first_that_passes(
    maker: _Maker, gate: Gate, tolerance: float, progress: Progress
) -> tuple[ModelProto, bytes, GateResult, Exporter]:
    """Return the network and the file of the first exporter that passes; raise the first refusal if none does."""
    refusals: list[TwinbudError] = []
    for exporter in EXPORTERS:
        progress.note(f"exporting ({exporter})")
        try:
            network = maker.network(exporter)
            file = maker.file(network, "float32")
            return network, file, gate.check(file, maker.metadata("float32"), tolerance=tolerance), exporter
        except TwinbudError as refusal:
            refusals.append(refusal)
    raise refusals[0]


def _quantized(
    maker: _Maker,
    gate: Gate,
    network: ModelProto,
    float32_file: bytes,
    images: TestPartImages,
    progress: Progress,
) -> tuple[bytes, GateResult]:
    """Return the int8 file, if it is faster than the other one on this machine, and as accurate as torch."""
    pixels_NCSS = images.calibration(maker.image_size)
    progress.note(f"quantizing with {len(pixels_NCSS):,} training images")
    file = maker.file(quantize(network, pixels_NCSS), "int8")
    result = gate.check_quantized(file, maker.metadata("int8"))
    times = speedup(float32_file, file, maker.image_size)
    if times <= 1:
        raise TwinbudError(
            f"the int8 file is not faster on this machine: one image takes {1 / times:.2f} times as long as in float32",
            where="export --int8",
            fix="Export without --int8",
        )
    return file, result


def _calibrated(classifier: Classifier) -> ModelFolder:
    """Return the model folder, deciding at its temperature."""
    model_folder = classifier.model_folder
    if classifier.trusted is None:
        return model_folder
    return replace(model_folder, task=model_folder.task.at_temperature(classifier.trusted.trust.temperature))


def _to_tell(trust: Trust | None) -> dict[str, Any]:
    """Return what the file says of its trust: operating points of each class, and how prediction sets are made."""
    if trust is None:
        return {}
    told = {"operating_points": to_json(trust.points), "prediction_sets": to_json(trust.sets) if trust.sets else None}
    return {name: value for name, value in told.items() if value}


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).exists()


def _weights(folder: Path) -> Path:
    return folder / "model" if _is_run(folder) else folder


def _row(name: str, num_bytes: int, latency_seconds: Mapping[int, float], result: GateResult) -> ExportRow:
    scores = result.scores.get("onnx" if name.startswith("onnx") else "torch")
    return ExportRow(
        name=name,
        num_bytes=num_bytes,
        latency_seconds=latency_seconds,
        accuracy=scores.accuracy if scores else None,
        ece=scores.ece if scores else None,
        coverage=scores.coverage if scores else None,
    )
