"""What a report shows first: the leading metric and the classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from twinbud.evaluation.metrics import EvaluationMetrics, evaluate
from twinbud.evaluation.predictions import Predictions
from twinbud.report.model import RunSummary
from twinbud.report.model_card import write_model_card
from twinbud.report.page import certainty, headline, perspective, write_report

pytestmark = pytest.mark.usefixtures("drawn_figures")


def metrics(common: int, rare: int, patients: tuple[str, ...] | None = None) -> EvaluationMetrics:
    labels = np.array([0] * common + [1] * rare)
    positive = np.linspace(0.1, 0.9, len(labels))
    predictions = Predictions(
        paths=tuple(f"{number}.png" for number in range(len(labels))),
        labels=labels,
        probabilities=np.stack([1 - positive, positive], axis=1),
        classes=("benign", "malignant"),
        patient_ids=patients,
    )
    return evaluate(predictions, num_bootstrap=20, aggregate="mean")


def page(tmp_path: Path, found: EvaluationMetrics) -> str:
    write_report(tmp_path / "report.html", RunSummary(title="a", metrics=found))
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_balanced_accuracy_and_sensitivities_stand_first_from_five_to_one_on(tmp_path: Path) -> None:
    imbalanced = page(tmp_path, metrics(50, 10))
    assert imbalanced.index("Metrics per class</h2>") < imbalanced.index("<h2>Metrics</h2>")
    assert imbalanced.index(">Balanced accuracy<") < imbalanced.index(">Accuracy<")
    balanced = page(tmp_path, metrics(49, 10))
    assert balanced.index("<h2>Metrics</h2>") < balanced.index("Metrics per class</h2>")
    assert balanced.index(">Accuracy<") < balanced.index(">Balanced accuracy<")


def test_the_sentences_of_an_imbalanced_set_are_about_balanced_accuracy() -> None:
    found = metrics(50, 10)
    interval = found.confidence_intervals["balanced_accuracy"]
    assert interval is not None
    assert f"{100 * interval[0]:.1f}" in certainty(found)
    assert "on average over the classes" in headline(found)
    assert perspective(found).startswith(f"The accuracy is {100 * found.accuracy:.1f}")


def test_the_card_starts_with_the_leading_metric(tmp_path: Path) -> None:
    found = metrics(50, 10)
    write_model_card(tmp_path / "README.md", RunSummary(title="a", metrics=found))
    assert f"\n{100 * found.balanced_accuracy:.1f}\u00a0% of the images" in (tmp_path / "README.md").read_text("utf-8")


def test_the_page_shows_metrics_of_patients_beside_those_of_images(tmp_path: Path) -> None:
    patients = tuple(str(number // 2) for number in range(60))
    found = metrics(30, 30, patients)
    assert found.patients is not None
    assert "of 30 patients" in page(tmp_path, found)
    assert "Of patients</th>" not in page(tmp_path, replace(found, patients=None))
