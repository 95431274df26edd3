"""The settings of images: which to use, how to read them, and how to divide them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from twinbud.config.data_spec import parse_data
from twinbud.config.fields import setting
from twinbud.config.reading import ALL_FRAMES, DICOM_WINDOW, Axis, Frames, Reading, Window
from twinbud.config.task import TaskConfig

Subset = Literal["stratified", "plain"]
NearDuplicates = Literal["group", "ignore"]


@dataclass(frozen=True, kw_only=True)
class DataConfig(TaskConfig):
    """Which images to use, what is asked of them, and how to divide them."""

    data: str = setting(
        "phantom", "Folder of class folders, CSV file, 'phantom' (generated), or a set by name.", min_length=1
    )
    data_root: Path | None = setting(None, "Local copy of the set that --data names: its folder, or its .npz file.")
    image_column: str = setting("image_path", "CSV column of the image path, relative to the CSV file.", min_length=1)
    label_column: str = setting("label", "CSV column of the class name.", min_length=1)
    patient_column: str = setting(
        "patient_id", "CSV column of the patient; no patient is in two parts of the split.", min_length=1
    )
    split_column: str = setting("split", "CSV column with train, val or test.", min_length=1)
    split: Path | None = setting(None, "split.csv of an earlier run, to reuse its split.")
    split_seed: int = setting(0, "Seed of the 80/20 split into training and test part.")
    develop: bool = setting(
        False, "Do not use the test part: divide the training part 80/20 again, and test on its fifth."
    )
    split_duplicates: bool = setting(False, "Allow identical images in both parts; a patient still stays in one.")
    near_duplicates: NearDuplicates = setting(
        "ignore",
        "Images that show the same picture, re-encoded, brightened, mirrored or slightly cropped: group keeps them on "
        "one side of the split, and refuses a given split that does not.",
    )
    fraction: float = setting(1.0, "Share of the training part whose labels are used.", gt=0, le=1)
    subset: Subset = setting("stratified", "How to draw that share: at least one image per class, or at random.")
    window: Window = setting(
        DICOM_WINDOW,
        "Intensity window of DICOM and NIfTI: the file's own (dicom), its whole range (auto), lung, mediastinum, "
        "brain, bone, or CENTER,WIDTH, as in --window=-600,1500.",
    )
    frames: Frames = setting(
        ALL_FRAMES, "Images to take from a file or series of several: all, middle, or a number counted from 0."
    )
    axis: Axis = setting("axial", "Direction in which the slices of a volume follow each other.")
    volume: int | None = setting(
        None, "Volume to take from a file of several (4-D NIfTI), counted from 0; none: such a file is an error.", ge=0
    )
    patient_salt: Path | None = setting(
        None, "File with the secret that hashes patient ids of DICOM; none: one is made for each source of images."
    )
    skip_broken: bool = setting(False, "Leave out images that cannot be read, and list them.")
    max_megapixels: float = setting(36.0, "Refuse images with more pixels than this, before decoding.", gt=0)

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        parse_data(self.data)
        return self

    @property
    def groups_near_duplicates(self) -> bool:
        """Whether near-duplicates stay on one side of the split; a plain random split keeps nothing together."""
        return self.near_duplicates == "group" and not self.split_duplicates

    @property
    def reading(self) -> Reading:
        """How files are read: what a model folder keeps for new files."""
        return Reading(window=self.window, frames=self.frames, axis=self.axis, volume=self.volume)
