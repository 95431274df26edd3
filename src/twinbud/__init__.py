"""Small, trustworthy medical-image classifiers trained from large pretrained teachers.

Whole jobs, one call each, as the command line does them:

- ``train``: train, evaluate and save a student.
- ``evaluate``: evaluate a finished run on its own test images, or on others.
- ``calibrate``: make the probabilities of a finished run trustworthy, and measure how far they are.
- ``compare``: compare finished runs by cross-validation, without their test parts.
- ``predict``: classify images.
- ``explain``: map what predictions depend on, with checks of the maps.
- ``read_image``: read the pixels of one image as the network sees them before resizing.
- ``open_model``: open a trained network for inference.
- ``export``: write a trained network as one ONNX file.
- ``audit``: look for copies, leaks, wrong labels and shortcuts in a set of images.
- ``select``: select the weights of student and auxiliary, for training on another machine.
- ``teach``: train a teacher of one's own, on images without labels.
- ``study``: execute all runs of a recipe.
- ``families``, ``widths``: list the networks that weights are selected from, and the widths of one of them.
- ``datasets``: list the public image sets that have a name.

Every error that a caller can correct is a ``TwinbudError`` of one line. The stages of a run are public one level down,
in the order in which a run takes them: ``twinbud.data``, ``models``, ``recovery``, ``training``, ``evaluation``,
``report``; ``twinbud.config.schema`` explains every setting.
"""

from typing import TYPE_CHECKING

from twinbud.auditing.api import audit
from twinbud.core.errors import TwinbudError
from twinbud.data.read_image import read_image
from twinbud.explaining.api import explain
from twinbud.runs.api import evaluate, open_model, predict, select, train
from twinbud.runs.calibrate_api import calibrate
from twinbud.runs.catalog import datasets, families, widths
from twinbud.runs.compare_api import compare
from twinbud.runs.export_api import export
from twinbud.runs.teach_api import teach

if TYPE_CHECKING:
    from twinbud.study.api import study
else:
    from twinbud import study

__all__ = [
    "TwinbudError",
    "audit",
    "calibrate",
    "compare",
    "datasets",
    "evaluate",
    "explain",
    "export",
    "families",
    "open_model",
    "predict",
    "read_image",
    "select",
    "study",
    "teach",
    "train",
    "widths",
]
