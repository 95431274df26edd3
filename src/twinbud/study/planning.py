"""From the cells of a recipe to runs that can be carried out: where the images lie, and who each run is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from twinbud.config.schema import DataConfig, RunConfig
from twinbud.core.errors import TwinbudError, first_few, unknown_choice
from twinbud.core.progress import Progress
from twinbud.data.formats.raster import BrokenImageError
from twinbud.data.index import ImageIndex
from twinbud.data.source import read_index
from twinbud.data.split import make_split
from twinbud.models.families.base import Family
from twinbud.models.student_spec import read_student_spec
from twinbud.models.teacher import read_teacher_card
from twinbud.recovery.stage import num_recovery_steps
from twinbud.runs.context import decode_images
from twinbud.study.grid import Cell, PlannedRun, checked_config
from twinbud.study.run_id import images_fingerprint, make_run_id, run_facts, teacher_fingerprint
from twinbud.training.epoch_loop import plan_steps


def read_places(words: Sequence[str], cells: Sequence[Cell]) -> dict[str, str]:
    """Where the images of each named set lie, from ``NAME=PATH``; ``phantom`` needs none.

    Raises:
        TwinbudError: No NAME=PATH, a name that no run has, or a set without a place.
    """
    names = list(dict.fromkeys(cell.data for cell in cells))
    places = {"phantom": "phantom"}
    for word in words:
        name, equals, place = word.partition("=")
        if not equals or not place:
            raise TwinbudError("NAME=PATH", got=f"'{word}'", where="--data", fix=f"Write --data {names[0]}=PATH")
        if name not in names:
            raise unknown_choice("--data", name, names)
        places[name] = place
    if missing := [name for name in names if name not in places]:
        known = [name for name in names if name in places]
        fix = f"Give {' '.join(f'--data {name}=PATH' for name in missing)}"
        if known:
            fix += f", or leave them out with --only data={','.join(known)}"
        raise TwinbudError(
            "a place for every set of images", got=f"none for {first_few(missing)}", where="--data", fix=fix
        )
    return {name: places[name] for name in names}


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """What is known of a named set once its images have been decoded; the pixels are let go.

    Attributes:
        image_index: Its images.
        digests: Of each image, the SHA-256 of its decoded pixels.
        fingerprint: That of the whole.
    """

    image_index: ImageIndex
    digests: tuple[str, ...]
    fingerprint: str

    @property
    def description(self) -> dict[str, Any]:
        """As the runs folder keeps it."""
        return {
            "fingerprint": self.fingerprint,
            "num_images": len(self.digests),
            "classes": list(self.image_index.classes),
        }


def open_image_set(config: RunConfig, progress: Progress) -> ImageSet:
    """Decode a set of images and say what it is.

    Raises:
        TwinbudError: See ``read_index`` and ``load_image_store``.
    """
    try:
        image_index, image_store = decode_images(read_index(config.data), config, progress)
    except BrokenImageError as error:
        fix = "Mend or remove it, or write skip_broken: true under settings: in the recipe to leave it out"
        raise TwinbudError(error.expected, got=error.got, where=error.where, fix=fix) from error
    return ImageSet(
        image_index=image_index,
        digests=image_store.digests,
        fingerprint=images_fingerprint(image_index, image_store.digests),
    )


def plan_runs(
    cells: Iterable[Cell], places: Mapping[str, str], progress: Progress, *, pixel_cache: bool = True
) -> tuple[tuple[PlannedRun, ...], dict[str, ImageSet]]:
    """The runs to carry out, in order, and what each name of a set stands for.

    Raises:
        TwinbudError: Images, a teacher or a student that cannot be used.
    """
    planner = _Planner(progress, pixel_cache)
    runs = tuple(planner.plan(cell, places[cell.data]) for cell in cells)
    return runs, planner.sets


class Sizes(NamedTuple):
    """How many images are labelled, in the training part, and in the test part."""

    labelled: int
    train: int
    test: int


class _Planner:
    """Remembers what the runs of a study share."""

    def __init__(self, progress: Progress, pixel_cache: bool) -> None:
        self.progress, self.pixel_cache = progress, pixel_cache
        self.sets: dict[str, ImageSet] = {}
        self.teachers: dict[str, str] = {}
        self.families: dict[tuple[str, str], Family] = {}
        self.sizes: dict[tuple[str, DataConfig], Sizes] = {}

    def plan(self, cell: Cell, place: str) -> PlannedRun:
        settings = {**cell.settings, "data": place}
        config = checked_config(settings)
        facts = self._facts(cell.data, config)
        sizes = self._sizes(cell.data, config.data)
        return PlannedRun(
            run_id=make_run_id(facts),
            facts=facts,
            coordinates=cell.coordinates,
            settings=settings,
            num_steps=_num_steps(config, sizes),
            num_test=sizes.test,
            is_default=cell.default is not None
            and facts == self._facts(cell.data, checked_config({**cell.default, "data": place})),
        )

    def _facts(self, name: str, config: RunConfig) -> dict[str, Any]:
        teacher, student = config.model.teacher or "", config.model.student
        if (teacher, student) not in self.families:  # before any image is decoded: a mistake here is found at once
            self.families[teacher, student] = read_student_spec(read_teacher_card(teacher), student).family
            self.teachers[teacher] = teacher_fingerprint(teacher)
        if name not in self.sets:
            self.progress.note(f"reading {name}: {config.data.data}")
            self.sets[name] = open_image_set(replace(config, pixel_cache=self.pixel_cache), self.progress)
        images, family = self.sets[name].fingerprint, self.families[teacher, student]
        return run_facts(config, images=images, teacher=self.teachers[teacher], family=family)

    def _sizes(self, name: str, data: DataConfig) -> Sizes:
        """How many images each part has; every sampling has as many."""
        if (name, data) not in self.sizes:
            split = make_split(self.sets[name].image_index, self.sets[name].digests, data, seed=0)
            self.sizes[name, data] = Sizes(len(split.labelled), len(split.train), len(split.test))
        return self.sizes[name, data]


def _num_steps(config: RunConfig, sizes: Sizes) -> int:
    """Of recovery and of every phase of training."""
    seen = sizes.train if config.recovery.recover == "unlabelled" else sizes.labelled
    training = config.training.num_phases * plan_steps(config.training, sizes.labelled).num_steps
    return num_recovery_steps(config, seen) + training
