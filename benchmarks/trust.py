"""How calibration, prediction sets and novelty hold over many samplings of the labelled images.

    python benchmarks/trust.py DATA/blood-cells DATA/breast-ultrasound ... [--fraction 0.05 0.1] [--samplings 20]

Training a student once a fold and sampling would take days, so that the classifier is a logistic regression on the
features of the frozen teacher (dinov2-small, 112 pixels): everything that `twinbud calibrate` does after the folds are
trained is done here by the same functions. Each line of the first table is the mean over the samplings; coverage with
its smallest and largest value, and as "least class" the mean coverage of the class that is covered least often, without
and with --per-class ("–" where a class has too few labels for it). "by chance" is the calibration error that exact
probabilities would show on as many test images; "accepted" is the share of test images below the threshold of novelty.
The second table has, for each set, the area under the ROC curve of the novelty score: test images against those of the
other sets, and against their own changed ones. The third compares that score with others. With --develop, a fifth of
the training part stands for the test part. About 15 minutes for the five sets on one core, most of it for the features.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from twinbud.config.data_config import DataConfig
from twinbud.config.loading import run_config
from twinbud.config.schema import Fold
from twinbud.core.progress import SilentProgress
from twinbud.data.cross_fitting import take_fold
from twinbud.data.duplicates import blank_digests
from twinbud.data.index import evenly
from twinbud.data.split import Split, make_split
from twinbud.evaluation.predict import predict_outputs
from twinbud.evaluation.predictions import Predictions
from twinbud.runs.context import Job
from twinbud.runs.pipeline import prepare
from twinbud.runs.resource_cache import ResourceCache
from twinbud.trust.conformal import fit_prediction_sets
from twinbud.trust.measure import measure_calibration
from twinbud.trust.novelty import fit_novelty, novelty_threshold
from twinbud.trust.shifts import SHIFTS
from twinbud.trust.temperature import fit_temperature

SETTINGS: dict[str, Any] = {
    "teacher": "dinov2-small",
    "profile": "quick",
    "near_duplicates": "ignore",
    "method": "probe",
    "precision": "float32",
}
NUM_FOLDS = 5
COVERAGE = 0.9
DISTANCE = "Mahalanobis distance"
MAX_IMAGES = 300
"""Images of a set that stand for it in the second table."""


class ImageSet:
    """The images of one set, and their features."""

    def __init__(self, data: Path) -> None:
        self.name = data.name
        config = run_config(SETTINGS | {"data": str(data)}, output=Path("-"))
        self.job: Job = prepare(config, SilentProgress(), ResourceCache())
        self.preprocessing = self.job.initialization.student_spec.preprocessing(config.training.image_size)
        self.features_ND = self.features(self.job.image_store.rows(range(len(self.job.image_store))))
        self.labels_N = np.array([self.classes.index(row.label) for row in self.job.image_index.rows])

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return self.job.image_index.classes

    def features(self, images: Any) -> np.ndarray:
        """Compute the features of images."""
        return predict_outputs(self.job.student_pair.student, images, preprocessing=self.preprocessing).features_ND

    def split(self, fraction: float, sampling: int, *, develop: bool) -> Split:
        """Return the split of a sampling."""
        config = DataConfig(data="-", fraction=fraction, near_duplicates="ignore", develop=develop)
        store = self.job.image_store
        return make_split(self.job.image_index, store.digests, config, seed=sampling, blank=blank_digests(store))

    def fold(self, split: Split, number: int, count: int = NUM_FOLDS) -> Split:
        """Return one fold of its labelled images."""
        store, fold = self.job.image_store, Fold(number=number, count=count)
        blank = blank_digests(store)
        return take_fold(split, self.job.image_index, store.digests, blank=blank, fold=fold, split_seed=0)

    def logits(self, learned: tuple[int, ...], rows: tuple[int, ...]) -> np.ndarray:
        """Return the logits (N, C) of a logistic regression, float32."""
        model = self.classifier(learned)
        log_odds = model.decision_function(self.features_ND[list(rows)])
        if log_odds.ndim == 1:
            log_odds = np.stack([-log_odds / 2, log_odds / 2], axis=1)
        logits_NC = np.full((len(rows), len(self.classes)), -30.0, dtype=np.float32)
        logits_NC[:, model.classes_] = log_odds
        return logits_NC

    def scores(self, split: Split) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        """Return functions of features (N, D) that are large for images unlike the labelled ones, by name."""
        learned = list(split.labelled)
        known_ND = self.features_ND[learned]
        novelty = fit_novelty(known_ND, self.labels_N[learned])
        unit_ND = known_ND / np.linalg.norm(known_ND, axis=1, keepdims=True)
        model = self.classifier(split.labelled)

        def log_odds(features_ND: np.ndarray) -> np.ndarray:
            values = model.decision_function(features_ND)
            return np.stack([-values / 2, values / 2], axis=1) if values.ndim == 1 else values

        return {
            DISTANCE: novelty.scores,
            "nearest neighbor (cosine)": lambda features_ND: (
                1 - (features_ND @ unit_ND.T / np.linalg.norm(features_ND, axis=1, keepdims=True)).max(axis=1)
            ),
            "energy": lambda features_ND: -logsumexp(log_odds(features_ND), axis=1),
            "confidence": lambda features_ND: -softmax(log_odds(features_ND), axis=1).max(axis=1),
        }

    def classifier(self, learned: tuple[int, ...]) -> Any:
        """Fit a logistic regression on standardized features."""
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        return model.fit(self.features_ND[list(learned)], self.labels_N[list(learned)])

    def predictions(self, rows: tuple[int, ...], logits_NC: np.ndarray, temperature: float) -> Predictions:
        """Return labelled predictions."""
        paths = tuple(self.job.image_index.rows[row].path for row in rows)
        labels = self.labels_N[list(rows)]
        return Predictions.from_logits(
            logits_NC, paths=paths, classes=self.classes, labels=labels, temperature=temperature
        )

    def sampling(self, split: Split) -> dict[str, float]:
        """Calibrate one sampling and measure it on its test part."""
        task = self.job.task
        folds = [self.fold(split, number) for number in range(1, NUM_FOLDS + 1)]
        rows = tuple(row for fold in folds for row in fold.test)
        logits_NC = np.concatenate([self.logits(fold.labelled, fold.test) for fold in folds])
        labels, patients = self.labels_N[list(rows)], np.arange(len(rows))
        temperature = fit_temperature(task, logits_NC, labels, np.ones(len(rows)))
        known = self.predictions(rows, logits_NC, temperature)
        test_logits = self.logits(split.labelled, split.test)
        before, after = (self.predictions(split.test, test_logits, t) for t in (1.0, temperature))
        units = np.arange(len(split.test))
        measured: dict[str, float] = {"accuracy": after.accuracy, "temperature": temperature}
        for name, shown in (("before", before), ("after", after)):
            calibration = measure_calibration(shown, units, num_bootstrap=0)
            measured |= {f"ECE {name}": calibration.ece.value, f"NLL {name}": calibration.nll.value}
            measured["by chance"] = calibration.ece_by_chance
        for per_class in (False, True):
            least = min(int((labels == k).sum()) for k in range(len(self.classes)))
            if per_class and least < COVERAGE * (least + 1):
                continue
            sets = fit_prediction_sets(
                known.probabilities, labels, patients, classes=self.classes, coverage=COVERAGE, per_class=per_class
            )
            members_NC, truth = sets.members(after.probabilities), self.labels_N[list(split.test)]
            hit_N = members_NC[units, truth]
            suffix = ", per class" if per_class else ""
            measured[f"coverage{suffix}"] = float(hit_N.mean())
            measured[f"size{suffix}"] = float(members_NC.sum(axis=1).mean())
            measured |= {f"class {k}{suffix}": float(hit_N[truth == k].mean()) for k in range(len(self.classes))}
        scores = [
            fit_novelty(self.features_ND[list(fold.labelled)], self.labels_N[list(fold.labelled)]).scores(
                self.features_ND[list(fold.test)]
            )
            for fold in folds
        ]
        novelty = fit_novelty(self.features_ND[list(split.labelled)], self.labels_N[list(split.labelled)])
        threshold = novelty_threshold(np.concatenate(scores))
        measured["accepted"] = float((novelty.scores(self.features_ND[list(split.test)]) <= threshold).mean())
        return measured


def read_options(description: str | None) -> argparse.Namespace:
    """Read the image sets, label fractions and samplings of a benchmark from its command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--fraction", type=float, nargs="*", default=[0.05, 0.1])
    parser.add_argument("--samplings", type=int, default=20)
    parser.add_argument("--develop", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Measure and print two Markdown tables."""
    options = read_options(__doc__)
    image_sets = [ImageSet(data) for data in options.data]
    heads = (
        "accuracy", "temperature", "ECE before", "ECE after", "by chance", "NLL before", "NLL after", "coverage",
        "size", "least class", "size, per class", "least class, per class", "accepted",
    )  # fmt: skip
    print(f"| set | labelled | {' | '.join(heads)} |")
    print("|---" * (len(heads) + 2) + "|")
    splits: dict[str, Split] = {}
    for image_set in image_sets:
        for fraction in options.fraction:
            samplings = [
                image_set.split(fraction, sampling, develop=options.develop) for sampling in range(options.samplings)
            ]
            splits[image_set.name] = samplings[0]
            cells = _cells([image_set.sampling(split) for split in samplings], heads, len(image_set.classes))
            print(f"| {image_set.name} | {len(samplings[0].labelled)} | {' | '.join(cells)} |", flush=True)
    print_novelty(image_sets, splits)


def _cells(rows: list[dict[str, float]], heads: Sequence[str], num_classes: int) -> list[str]:
    """Return the mean of each column over the samplings, as text."""
    means = {name: float(np.mean([row[name] for row in rows if name in row])) for name in rows[0]}
    for suffix in ("", ", per class"):
        if f"class 0{suffix}" in means:
            means[f"least class{suffix}"] = min(means[f"class {k}{suffix}"] for k in range(num_classes))
    cells = [f"{means[name]:.3f}" if name in means else "–" for name in heads]
    ends = [row["coverage"] for row in rows]
    cells[heads.index("coverage")] += f" ({min(ends):.3f} to {max(ends):.3f})"
    return cells


def print_novelty(image_sets: list[ImageSet], splits: dict[str, Split]) -> None:
    """Print the area under the ROC curve of each set's novelty score against other images, for the first sampling."""
    print(f"\n| network of | {' | '.join([*(one.name for one in image_sets), *SHIFTS])} |")
    print("|---" * (len(image_sets) + len(SHIFTS) + 1) + "|")
    values: dict[str, list[list[float]]] = {}
    for image_set in image_sets:
        split = splits[image_set.name]
        test = evenly(split.test, MAX_IMAGES)
        own = image_set.features_ND[list(test)]
        others = [
            None if other is image_set else other.features_ND[list(evenly(range(len(other.features_ND)), MAX_IMAGES))]
            for other in image_sets
        ]
        pixels_NCSS = image_set.job.image_store.rows(test)[torch.arange(len(test))]
        others += [image_set.features(shift(pixels_NCSS)) for shift in SHIFTS.values()]
        for name, score in image_set.scores(split).items():
            aurocs = [float("nan") if other is None else _auroc(score(own), score(other)) for other in others]
            values.setdefault(name, []).append(aurocs)
            if name == DISTANCE:
                cells = ["–" if other is None else f"{auroc:.3f}" for other, auroc in zip(others, aurocs, strict=True)]
                print(f"| {image_set.name} | {' | '.join(cells)} |", flush=True)
    print("\n| score, mean of the networks | other sets | smallest | changed images | smallest |")
    print("|---|---|---|---|---|")
    for name, table in values.items():
        sets, shifts = np.split(np.array(table), [len(image_sets)], axis=1)
        figures = (np.nanmean(sets), np.nanmin(sets), shifts.mean(), shifts.min())
        print(f"| {name} | {' | '.join(f'{figure:.3f}' for figure in figures)} |")


def _auroc(own: np.ndarray, other: np.ndarray) -> float:
    return float(roc_auc_score(np.r_[np.zeros(len(own)), np.ones(len(other))], np.r_[own, other]))


if __name__ == "__main__":
    main()
