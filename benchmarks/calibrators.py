"""Which way of calibrating needs no held-back labels and holds on other images: temperature, and what could replace it.

    python benchmarks/calibrators.py DATA/blood-cells DATA/breast-ultrasound ... [--samplings 20] [--develop]

The classifier is a logistic regression on the features of the frozen teacher, as in trust.py. All are fitted to the
predictions of omitted folds of the labelled images:

- temperature: one number, as `twinbud calibrate` does, with 5 or 10 folds;
- bias-corrected temperature: one number, and one bias a class (Alexandari et al., ICML 2020);
- vector scaling: one factor and one bias a class (Guo et al., ICML 2017);
- mean of folds: the mean of the calibrated probabilities of the five models of the folds, which is five networks.

For each it prints the calibration error (ECE, 15 bins) and the negative log-likelihood on the test part, mean over the
samplings, and the mean difference to the temperature of five folds with a 95 % t interval over samplings, each of them
the mean over the sets. With --develop, a fifth of the training part stands for the test part.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from trust import ImageSet, read_options
from twinbud.data.split import Split
from twinbud.evaluation.calibration import expected_calibration_error
from twinbud.study.statistics import paired_difference
from twinbud.tasks.base import Task
from twinbud.trust.temperature import fit_temperature, negative_log_likelihood

BASELINE = "temperature, 5 folds"
FOLDS = (5, 10)
NAMES = (
    "none", BASELINE, "temperature, 10 folds", "bias-corrected temperature", "vector scaling", "mean of folds",
)  # fmt: skip
Calibrator = Callable[[np.ndarray], np.ndarray]
"""From logits (N, C) to probabilities (N, C)."""


def affine(logits_NC: np.ndarray, labels_N: np.ndarray, *, one_factor: bool) -> Calibrator:
    """Fit factors and biases of the classes by maximum likelihood; the first bias is 0."""
    num_classes = logits_NC.shape[1]
    num_factors = 1 if one_factor else num_classes

    def applied(parameters: np.ndarray, given_NC: np.ndarray) -> np.ndarray:
        biases_C = np.r_[0.0, parameters[num_factors:]]
        return given_NC * parameters[:num_factors] + biases_C

    def loss(parameters: np.ndarray) -> float:
        return -float(log_softmax(applied(parameters, logits_NC), axis=1)[np.arange(len(labels_N)), labels_N].mean())

    start = np.r_[np.ones(num_factors), np.zeros(num_classes - 1)]
    bounds = [(0.05, 5.0)] * num_factors + [(-10.0, 10.0)] * (num_classes - 1)
    found = minimize(loss, start, bounds=bounds, method="L-BFGS-B").x
    return lambda given_NC: softmax(applied(found, given_NC), axis=1)


def scaled(temperature: float) -> Calibrator:
    """Divide the logits by a temperature."""
    return lambda logits_NC: softmax(logits_NC / temperature, axis=1)


def sampling(image_set: ImageSet, split: Split) -> dict[str, tuple[float, float]]:
    """Return calibration error and negative log-likelihood of each way on the test part of a sampling."""
    test_NC, truth_N = image_set.logits(split.labelled, split.test), image_set.labels_N[list(split.test)]
    task, probabilities = image_set.job.task, {"none": softmax(test_NC, axis=1)}
    labelled_per_class = np.bincount(image_set.labels_N[list(split.labelled)])
    for count in FOLDS:
        if count > labelled_per_class.max():  # which `twinbud calibrate` refuses, too
            continue
        folds = [image_set.fold(split, number, count) for number in range(1, count + 1)]
        labels_N = image_set.labels_N[[row for fold in folds for row in fold.test]]
        logits_NC = np.concatenate([image_set.logits(fold.labelled, fold.test) for fold in folds])
        calibrate = scaled(fit_temperature(task, logits_NC, labels_N, np.ones(len(labels_N))))
        probabilities[f"temperature, {count} folds"] = calibrate(test_NC)
        if count == FOLDS[0]:
            for name, one_factor in (("bias-corrected temperature", True), ("vector scaling", False)):
                probabilities[name] = affine(logits_NC, labels_N, one_factor=one_factor)(test_NC)
            each = [calibrate(image_set.logits(fold.labelled, split.test)) for fold in folds]
            probabilities["mean of folds"] = np.mean(each, axis=0)
    return {name: measured(task, found_NC, truth_N) for name, found_NC in probabilities.items()}


def measured(task: Task, probabilities_NC: np.ndarray, truth_N: np.ndarray) -> tuple[float, float]:
    """Return expected calibration error and negative log-likelihood."""
    confidence_N, is_right_N = probabilities_NC.max(axis=1), probabilities_NC.argmax(axis=1) == truth_N
    loss = float(negative_log_likelihood(task, probabilities_NC, truth_N).mean())
    return expected_calibration_error(confidence_N, is_right_N), loss


def main() -> None:
    """Measure and print two Markdown tables."""
    options = read_options(__doc__)
    found: list[list[dict[str, tuple[float, float]]]] = []
    for data in options.data:
        image_set = ImageSet(data)
        for fraction in options.fraction:
            splits = [image_set.split(fraction, number, develop=options.develop) for number in range(options.samplings)]
            found.append([sampling(image_set, split) for split in splits])
            if len(found) == 1:
                print(f"| set | labelled | {' | '.join(NAMES)} |\n{'|---' * (len(NAMES) + 2)}|")
            cells = [_cell([row[name] for row in found[-1] if name in row]) for name in NAMES]
            print(f"| {image_set.name} | {len(splits[0].labelled)} | {' | '.join(cells)} |", flush=True)
    print("\n| minus the temperature of five folds | calibration error | negative log-likelihood |\n|---|---|---|")
    for name in NAMES:
        everywhere = [rows for rows in found if all(name in row for row in rows)]
        if not everywhere:
            continue
        ours, baseline = (
            np.mean([[row[one] for row in rows] for rows in everywhere], axis=0).T for one in (name, BASELINE)
        )
        print(f"| {name} | {' | '.join(difference(*pair) for pair in zip(ours, baseline, strict=True))} |")


def _cell(values: list[tuple[float, float]]) -> str:
    """Return the means of calibration error and negative log-likelihood."""
    return ", ".join(f"{mean:.3f}" for mean in np.mean(values, axis=0)) if values else "–"


def difference(ours: np.ndarray, baseline: np.ndarray) -> str:
    """Return the mean paired difference of the samplings and its 95 % t interval."""
    found = paired_difference(dict(enumerate(ours.tolist())), dict(enumerate(baseline.tolist())))
    if found is None or found.interval is None:
        return "–"
    low, high = found.interval
    return f"{found.mean:+.4f} ({low:+.4f} to {high:+.4f})"


if __name__ == "__main__":
    main()
