"""The classifier of a finished run, as it is used: its network, and how far its answers can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twinbud.data.image_store import ImageStore
from twinbud.evaluation.predict import predict_logits, predict_outputs
from twinbud.evaluation.predictions import Predictions
from twinbud.models.model_folder import ModelFolder, open_model_folder
from twinbud.runs.run_dir import CONFIG, MARKER, read_settings
from twinbud.trust.record import TrustedModel, read_trust


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a classifier says of some images.

    Attributes:
        alone: Predictions of the network.
        trusted: The same with the trust applied, where the classifier has it; else ``alone``.
    """

    alone: Predictions
    trusted: Predictions


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A trained network.

    Attributes:
        model_folder: The network, and what belongs to it.
        trusted: Calibration, prediction sets and novelty; None before ``twinbud calibrate``.
    """

    model_folder: ModelFolder
    trusted: TrustedModel | None

    def classify(
        self,
        image_store: ImageStore,
        *,
        paths: tuple[str, ...],
        labels: np.ndarray | None = None,
        patient_ids: tuple[str | None, ...] | None = None,
    ) -> Answers:
        """Classify decoded images; see ``Predictions`` for what is known of them."""
        model, preprocessing = self.model_folder.model, self.model_folder.preprocessing
        images = image_store.rows(range(len(image_store)))
        outputs = predict_outputs(model, images, preprocessing=preprocessing) if self.trusted else None
        alone = Predictions.from_logits(
            outputs.logits_NK if outputs else predict_logits(model, images, preprocessing=preprocessing),
            paths=paths,
            classes=self.model_folder.classes,
            labels=labels,
            patient_ids=patient_ids,
            task=self.model_folder.task,
        )
        return Answers(
            alone=alone, trusted=self.trusted.apply(alone, outputs.features_ND) if self.trusted and outputs else alone
        )


def open_classifier(folder: Path) -> Classifier:
    """Open the classifier of a finished run, or a model folder.

    Raises:
        TwinbudError: There is none, the run is not finished, or its files do not fit together.
    """
    if (folder / MARKER).exists() or (folder / CONFIG).exists():
        read_settings(folder)
        folder = folder / "model"
    model_folder = open_model_folder(folder)
    return Classifier(model_folder=model_folder, trusted=read_trust(folder, model_folder.task))
