"""What ConvNeXt says of itself."""

from __future__ import annotations

from helpers.builders import CONVNEXT, random_model
from twinbud.config.schema import TrainingConfig, resolve
from twinbud.models.families.registry import family_of


def test_a_convnext_trains_at_the_papers_temperature_and_the_recipes_drop_path() -> None:
    family = family_of(random_model("convnext_tiny", **CONVNEXT))
    training = resolve(TrainingConfig(), temperature=family.temperature, drop_path=family.drop_path)
    assert (training.temperature, training.drop_path) == (3.0, 0.1)
    said = resolve(TrainingConfig(temperature=7.0, drop_path=0.0), temperature=3.0, drop_path=0.1)
    assert (said.temperature, said.drop_path) == (7.0, 0.0)


def test_half_a_teacher_is_never_deeper_than_the_teacher() -> None:
    """The pair of ConvNeXt-T by name has depths (2, 2, 6, 2)."""
    teacher = random_model("convnext_tiny", dims=[8, 16, 24, 32], depths=[1, 2, 3, 3])
    assert family_of(teacher).narrow_arguments("convnext_tiny", teacher, 2)["depths"] == [1, 2, 3, 2]
