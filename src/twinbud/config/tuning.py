"""Settings of the fine-tuning of the teacher."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from twinbud.config.fields import Checked, setting


@dataclass(frozen=True, kw_only=True)
class TuningConfig(Checked):
    """How the teacher is fine-tuned on the labelled images, before weights are selected from it."""

    tune_teacher: bool = setting(False, "Fine-tune the teacher on the labelled images first.")
    tune_epochs: int = setting(40, "Passes of the fine-tuning over the labelled images.", ge=1)
    tune_min_steps: int = setting(300, "Add epochs until at least this many steps of fine-tuning are planned.", ge=0)
    tune_learning_rate: float = setting(
        3e-4, "Peak learning rate of fine-tuning the teacher at batch size 32; scaled linearly with it.", ge=0
    )
    tune_layer_decay: float = setting(
        0.65, "Factor of that learning rate from each layer to the one below.", gt=0, le=1
    )
