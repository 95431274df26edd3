"""The gate: an exported file is written only if onnxruntime computes with it what torch computes.

torch answers by twinbud's own way: Pillow resizes each image, ``predict_logits`` runs the network of the model folder.
Nothing of the export is part of it, so a fault anywhere between the pixels and the probabilities shows.

Shape legend: N images, C classes, K outputs of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from twinbud.core.errors import TwinbudError, first_line
from twinbud.core.extras import import_extra
from twinbud.core.rng import numpy_stream
from twinbud.data.preprocessing import resize
from twinbud.evaluation.metrics import evaluate
from twinbud.evaluation.predict import predict_logits
from twinbud.evaluation.predictions import Predictions
from twinbud.exporting.network import EXTRA, INPUT, OUTPUTS
from twinbud.models.model_folder import ModelFolder

TOLERANCE = 1e-3
"""Largest difference of a logit that passes unless told otherwise, in float32."""
SAME_PROBABILITY = 1e-5
"""Probabilities that differ by less are the same: float32 against float64, and ties of decisions."""
LARGEST_LOSS = {"accuracy": 0.005, "coverage": 0.005, "calibration error": 0.01}
"""How much worse a file may be on labelled images: half a point, half a point, one point."""
_ROUNDING = 0.05
"""Differences of logits below this may be those of float32 in a deep network; larger ones are faults."""
_MAX_BATCH = 16
_MAX_BATCH_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What a classifier says of N images."""

    probabilities: np.ndarray
    """(N, C) float64."""
    logits: np.ndarray
    """(N, K) float32."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How good the answers about labelled images are."""

    accuracy: float
    """In [0, 1]; of several labels, the share of the known ones."""
    ece: float
    """Expected calibration error, in [0, 1]."""
    coverage: float | None
    """Share of the images whose prediction set contains the right class, in [0, 1]; None without prediction sets."""

    def lost(self, before: Scores) -> dict[str, float]:
        """Return how much worse these scores are than ``before``, by the name of the score."""
        lost = {"accuracy": before.accuracy - self.accuracy, "calibration error": self.ece - before.ece}
        if self.coverage is not None and before.coverage is not None:
            lost["coverage"] = before.coverage - self.coverage
        return lost


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """What the gate has measured of a file that passed.

    Attributes:
        num_images: Number of images that were compared, the generated ones included.
        num_labelled: How many of them are the run's own, with labels.
        logit_difference: Largest difference of a logit.
        probability_difference: Largest difference of a probability.
        num_ties: Decisions that differ because two probabilities are equal but for rounding.
        scores: Accuracy, calibration and coverage of torch and of the file; empty without labelled images.
    """

    num_images: int
    num_labelled: int
    logit_difference: float
    probability_difference: float
    num_ties: int
    scores: Mapping[str, Scores]


class Gate:
    """Compares files with one classifier on the same images; torch is asked once.

    Args:
        model_folder: The classifier.
        images: (H, W, 3) uint8 of any sizes; read anew for each file.
        labels: Targets of the first images, as ``Task.encode`` returns them; None for images without labels.
        temperature: Divides the logits before they become probabilities.
        members: Returns which classes are in the prediction set of each image, (N, C) bool, from probabilities (N, C);
            None for a classifier without prediction sets.
    """

    def __init__(
        self,
        model_folder: ModelFolder,
        images: Iterable[np.ndarray],
        *,
        labels: np.ndarray | None = None,
        temperature: float = 1.0,
        members: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.model_folder, self.labels, self.temperature = model_folder, labels, temperature
        self._members = members
        self._images, self._own = images, generated_images(model_folder.preprocessing.image_size)

    def check(self, file: bytes, metadata: Mapping[str, str], *, tolerance: float = TOLERANCE) -> GateResult:
        """Compare a float32 file with the classifier.

        Args:
            file: Contents of the ONNX file.
            metadata: What it must say of itself.
            tolerance: Largest difference of a logit; above 0.

        Raises:
            TwinbudError: It differs; the text has the difference that was measured.
        """
        found = self._answers(file, metadata)
        logits = _largest(found.logits, self.expected.logits)
        if not logits <= tolerance:
            fix = f"Give --tolerance {_above(logits)} if that is good enough" if logits < _ROUNDING else None
            raise _refusal(f"its logits differ from torch's by up to {logits:.2g}, more than {tolerance:g}", fix)
        self._require_consistent(found)
        result = self._result(found, logits, self._count_ties(found))
        # rounding and ties may move an image past a threshold or the edge of a bin, which is no fault
        if logits > TOLERANCE and result.num_ties == 0 and (told := _too_bad(result)):
            raise _refusal(told, f"Leave --tolerance at {TOLERANCE:g}")
        return result

    def check_quantized(self, file: bytes, metadata: Mapping[str, str]) -> GateResult:
        """Compare an int8 file with the classifier, by its scores; without labels, by the decisions that it keeps.

        Raises:
            TwinbudError: It loses more than ``LARGEST_LOSS``, or is not consistent with itself.
        """
        found = self._answers(file, metadata)
        self._require_consistent(found)
        result = self._result(found, _largest(found.logits, self.expected.logits), 0)
        told = _too_bad(result) if result.scores else self._too_different(found)
        if told:
            raise TwinbudError(
                f"the int8 file is not written: {told}", where="export --int8", fix="Export without --int8"
            )
        return result

    def _too_different(self, found: Answers) -> str | None:
        """Return the problem of a file that decides too often otherwise than torch."""
        share = float(self._differs(found).mean())
        if share <= LARGEST_LOSS["accuracy"]:
            return None
        return f"{100 * share:.2f} % of the decisions on {len(found.logits):,} images differ from torch's"

    @cached_property
    def expected(self) -> Answers:
        """What torch says, of the given images and then of the generated ones."""
        logits = np.concatenate([self._torch_logits(batch) for batch in self._batches()])
        return Answers(probabilities=self._probabilities(logits), logits=logits)

    def _torch_logits(self, batch: list[np.ndarray]) -> np.ndarray:
        size = self.model_folder.preprocessing.image_size
        pixels = torch.from_numpy(np.stack([resize(image, size) for image in batch])).permute(0, 3, 1, 2)
        return predict_logits(self.model_folder.model, pixels, preprocessing=self.model_folder.preprocessing)

    def _answers(self, file: bytes, metadata: Mapping[str, str]) -> Answers:
        """Run the file on batches of one image, of a few and of many."""
        session = open_session(file)
        said = session.get_modelmeta().custom_metadata_map
        wrong = [name for name, text in metadata.items() if said.get(name) != text]
        if wrong:
            raise _refusal(f"its metadata differ ({', '.join(wrong)})")
        probabilities, logits = [], []
        for batch in self._batches():
            try:
                answers = session.run(list(OUTPUTS), {INPUT: np.stack(batch)})
            except Exception as error:  # onnxruntime raises errors of its own kinds
                shape = (len(batch), *batch[0].shape)
                raise _refusal(f"onnxruntime fails on a batch of shape {shape} ({first_line(error)})") from error
            for kind, values, width in zip((probabilities, logits), answers, self._widths, strict=True):
                if values.shape != (len(batch), width) or values.dtype != np.float32:
                    raise _refusal(f"an output is {values.dtype} {values.shape}, not float32 {(len(batch), width)}")
                kind.append(values)
        return Answers(probabilities=np.concatenate(probabilities).astype(np.float64), logits=np.concatenate(logits))

    @property
    def _widths(self) -> tuple[int, int]:
        return len(self.model_folder.classes), self.model_folder.task.num_outputs

    def _batches(self) -> Iterator[list[np.ndarray]]:
        yield from _of_one_size(self._images)
        yield from self._own

    def _probabilities(self, logits: np.ndarray) -> np.ndarray:
        return self.model_folder.task.probabilities(logits.astype(np.float64) / self.temperature)

    def _require_consistent(self, found: Answers) -> None:
        """Refuse probabilities that are not those of the logits: another temperature, no softmax, other classes."""
        largest = _largest(found.probabilities, self._probabilities(found.logits))
        if not largest <= SAME_PROBABILITY:
            raise _refusal(f"its probabilities differ from those of its logits by up to {largest:.2g}")

    def _differs(self, found: Answers) -> np.ndarray:
        """Return which decisions differ, (N,) bool."""
        decided = [self.model_folder.task.predicted(answers.probabilities) for answers in (found, self.expected)]
        return (decided[0] != decided[1]).reshape(len(found.logits), -1).any(axis=1)

    def _count_ties(self, found: Answers) -> int:
        differs_N = self._differs(found)
        gaps_N = np.abs(found.probabilities - self.expected.probabilities).max(axis=1)
        wrong = int((differs_N & (gaps_N > SAME_PROBABILITY)).sum())
        if wrong:
            raise _refusal(f"{wrong} of {len(differs_N):,} decisions differ from torch's")
        return int(differs_N.sum())

    def _result(self, found: Answers, logits: float, num_ties: int) -> GateResult:
        scores = {}
        if self.labels is not None and len(self.labels):
            for name, answers in (("torch", self.expected), ("onnx", found)):
                scores[name] = self._scores(answers, self.labels)
        return GateResult(
            num_images=len(found.logits),
            num_labelled=0 if self.labels is None else len(self.labels),
            logit_difference=logits,
            probability_difference=_largest(found.probabilities, self.expected.probabilities),
            num_ties=num_ties,
            scores=scores,
        )

    def _scores(self, answers: Answers, labels: np.ndarray) -> Scores:
        predictions = Predictions(
            paths=tuple(map(str, range(len(labels)))),
            labels=labels,
            probabilities=answers.probabilities[: len(labels)],
            classes=self.model_folder.classes,
            task=self.model_folder.task,
        )
        metrics = evaluate(predictions, num_bootstrap=0)
        coverage = None
        if self._members is not None:
            members_NC = self._members(predictions.probabilities)
            coverage = float(members_NC[np.arange(len(labels)), labels].mean())
        return Scores(accuracy=metrics.accuracy, ece=metrics.ece, coverage=coverage)


def generated_images(image_size: int) -> list[list[np.ndarray]]:
    """Return batches of one, three and five images of noise, of the network's size and of others.

    Smooth and rough noise, wide, tall, small and large; uint8 (H, W, 3) each.
    """
    side = image_size
    shapes = [(1, side, side), (5, side, side), (1, 1, 1), (3, 2 * side + 1, side - 1 or 1), (1, 3, 4 * side)]
    shapes += [(1, 5 * side, 2 * side + 3), (3, side // 2 + 1, side // 3 + 1), (1, side, 3 * side)]
    batches: list[list[np.ndarray]] = []
    for place, (count, height, width) in enumerate(shapes):
        random = numpy_stream("export", 0, place)
        # each image from a corner of a cell to the next: what a network sees varies from coarse to fine
        cell = 2 ** (place % 4)
        coarse = random.integers(0, 256, (count, -(-height // cell), -(-width // cell), 3), dtype=np.uint8)
        fine = coarse.repeat(cell, axis=1).repeat(cell, axis=2)[:, :height, :width]
        batches.append(list(fine))
    return batches


def open_session(file: bytes, *, num_threads: int = 1) -> Any:
    """Open an ONNX file in onnxruntime, on the CPU.

    Raises:
        TwinbudError: onnxruntime cannot read it, or is not installed.
    """
    onnxruntime = import_extra("onnxruntime", EXTRA, where="export")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 4  # errors are raised; they are not printed as well
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises errors of its own kinds
        raise _refusal(f"onnxruntime cannot read it ({first_line(error)})") from error


def _of_one_size(images: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Group images that follow each other and have one size; the first one stays alone."""
    batch: list[np.ndarray] = []
    largest = 1
    for image in images:
        is_full = len(batch) >= largest or sum(other.nbytes for other in batch) >= _MAX_BATCH_BYTES
        if batch and (is_full or image.shape != batch[0].shape):
            yield batch
            batch, largest = [], _MAX_BATCH
        batch.append(image)
    if batch:
        yield batch


def _largest(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference; infinity where a value is not finite."""
    largest = float(np.abs(found - expected).max(initial=0.0))
    return largest if math.isfinite(largest) else math.inf


def _too_bad(result: GateResult) -> str | None:
    """Return the problem of a file that is worse than torch by more than ``LARGEST_LOSS``."""
    if not result.scores:
        return None
    for name, lost in result.scores["onnx"].lost(result.scores["torch"]).items():
        if not lost <= LARGEST_LOSS[name]:
            points = f"{100 * lost:.2f} points, more than {100 * LARGEST_LOSS[name]:g}"
            return f"its {name} on {result.num_labelled:,} images is worse than torch's by {points}"
    return None


def _above(value: float) -> str:
    """Return a number of one digit, as text, that is a little larger."""
    exponent = math.floor(math.log10(value))
    return f"{(math.floor(value / 10**exponent) + 1) * 10.0**exponent:g}"


def _refusal(problem: str, fix: str | None = None) -> TwinbudError:
    return TwinbudError(f"the ONNX file is not written: {problem}", where="export", fix=fix or "Report this network")
