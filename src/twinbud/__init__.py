"""Small, trustworthy medical-image classifiers trained from large pretrained teachers.

Whole jobs, one call each, as the command line does them:

- ``train``: train, evaluate and save a student.
- ``evaluate``: evaluate a finished run on its own test images, or on others.
- ``predict``: classify images.
- ``select``: select the weights of student and auxiliary, for training on another machine.
- ``study``: execute all runs of a recipe.
- ``datasets``: list the public image sets that have a name.

Every error that a caller can correct is a ``TwinbudError`` of one line. The stages of a run are public one level down,
in the order in which a run takes them: ``twinbud.data``, ``models``, ``recovery``, ``training``, ``evaluation``,
``report``; ``twinbud.config.schema`` explains every setting.
"""

from typing import TYPE_CHECKING

from twinbud.core.errors import TwinbudError
from twinbud.runs.api import datasets, evaluate, predict, select, train

if TYPE_CHECKING:
    from twinbud.study.api import study
else:
    from twinbud import study

__all__ = ["TwinbudError", "datasets", "evaluate", "predict", "select", "study", "train"]
