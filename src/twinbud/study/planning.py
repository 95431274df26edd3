"""From the cells of a recipe to planned runs: image paths, run ids and numbers of steps."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from twinbud.config.data_config import DataConfig
from twinbud.config.data_spec import parse_data
from twinbud.config.loading import read_setting
from twinbud.config.schema import ModelConfig, RunConfig
from twinbud.core.errors import TwinbudError, first_few, unknown_choice
from twinbud.core.progress import Progress
from twinbud.data.duplicates import blank_digests
from twinbud.data.formats.base import BrokenImageError
from twinbud.data.index import ImageIndex
from twinbud.data.source import read_index
from twinbud.data.split import make_split
from twinbud.models.families.base import SelectionFamily
from twinbud.models.initialization import describe_student
from twinbud.models.teacher_fingerprint import teacher_fingerprint
from twinbud.recovery.stage import num_recovery_steps
from twinbud.runs.context import decode_images, look_for_near_duplicates
from twinbud.runs.tuning import shared_tuning_config
from twinbud.study.grid import Cell, PlannedRun, SharedTuning
from twinbud.study.run_id import images_fingerprint, make_run_id, run_facts
from twinbud.training.epoch_loop import plan_steps


def parse_data_paths(options: Sequence[str], cells: Sequence[Cell]) -> dict[str, dict[str, str]]:
    """Parse ``--data NAME=PATH`` for each image set of the cells.

    PATH may be a public set: ``NAME=SET``, or ``NAME=SET=FOLDER`` with a local copy. Where NAME itself is a public set,
    no option is needed, and PATH is that of a local copy.

    Returns:
        For each name the settings that say where its images are: ``data``, and ``data_root`` for a local copy of a
        public set.

    Raises:
        TwinbudError: An option is not NAME=PATH or names an unknown set, or a set has no path or two of them.
    """
    names = list(dict.fromkeys(cell.data for cell in cells))
    known = {name: parse_data(name) for name in names}
    sources = {name: {"data": name} for name, spec in known.items() if not spec.is_path}
    paths: dict[str, str] = {}
    for option in options:
        name, equals, path = option.partition("=")
        if not equals or not path:
            raise TwinbudError(f"'{option}' is not NAME=PATH", where="--data", fix=f"Write --data {names[0]}=PATH")
        if name not in names:
            raise unknown_choice("--data", name, names)
        if (earlier := paths.setdefault(name, path)) != path:
            problem = f"two paths are given, '{earlier}' and '{path}'"
            raise TwinbudError(problem, where=f"--data {name}", fix="Give one of them")
        public, _, root = path.partition("=")
        if known[name].has_root:
            sources[name] = {"data": name, "data_root": path}
        elif root and parse_data(public).has_root:
            sources[name] = {"data": public, "data_root": root}
        else:
            sources[name] = {"data": path}
    if missing := [name for name in names if name not in sources]:
        given = [name for name in names if name in sources]
        fix = f"Give {' '.join(f'--data {name}=PATH' for name in missing)}"
        if given:
            fix += f", or exclude them with --only data={','.join(given)}"
        raise TwinbudError(
            f"{first_few(missing)} {'has' if len(missing) == 1 else 'have'} no path", where="--data", fix=fix
        )
    return {name: sources[name] for name in names}


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """A named set of images that were decoded once; it does not hold the pixels.

    Attributes:
        image_index: The images.
        digests: SHA-256 of the decoded pixels of each image.
        blank: Digests of repeated blank images.
        fingerprint: See ``images_fingerprint``.
        data: How they are read.
    """

    image_index: ImageIndex
    digests: tuple[str, ...]
    blank: frozenset[str]
    fingerprint: str
    data: DataConfig

    @property
    def description(self) -> dict[str, Any]:
        """The JSON object for the runs folder."""
        return {
            "fingerprint": self.fingerprint,
            "num_images": len(self.digests),
            "classes": list(self.image_index.classes),
        }


def open_image_set(config: RunConfig, progress: Progress) -> ImageSet:
    """Decode a set of images.

    Raises:
        TwinbudError: See ``read_index`` and ``load_image_store``.
    """
    try:
        image_index, image_store = decode_images(read_index(config.data, progress=progress), config, progress)
    except BrokenImageError as error:
        fix = "Repair or remove the file, or skip broken files with skip_broken: true under settings: in the recipe"
        raise TwinbudError(error.problem, where=error.where, fix=fix) from error
    return ImageSet(
        image_index=image_index,
        digests=image_store.digests,
        blank=blank_digests(image_store),
        fingerprint=images_fingerprint(image_index, image_store.digests),
        data=config.data,
    )


def plan_runs(
    cells: Iterable[Cell], sources: Mapping[str, Mapping[str, str]], progress: Progress, *, pixel_cache: bool = True
) -> tuple[tuple[PlannedRun, ...], dict[str, ImageSet]]:
    """Plan the run of each cell.

    Args:
        cells: The cells.
        sources: The result of ``parse_data_paths``.
        progress: Reports the decoding of images.
        pixel_cache: Whether decoded images are cached on the disk.

    Returns:
        The runs in the order of the cells, and the image sets by name.

    Raises:
        TwinbudError: Images, a teacher or a student cannot be used.
    """
    planner = _Planner(progress, pixel_cache)
    runs = tuple(planner.plan(cell, sources[cell.data]) for cell in cells)
    return runs, planner.image_sets


class _SplitSizes(NamedTuple):
    """Number of images that are labelled, in the training part and in the test part."""

    labelled: int
    train: int
    test: int


class _Planner:
    """Caches what the runs of a study share: image sets, teachers, students and splits."""

    def __init__(self, progress: Progress, pixel_cache: bool) -> None:
        self.progress, self.pixel_cache = progress, pixel_cache
        self.image_sets: dict[str, ImageSet] = {}
        self.fingerprint = functools.cache(teacher_fingerprint)
        self.families: dict[ModelConfig, SelectionFamily] = {}
        self.split_sizes: dict[tuple[str, DataConfig], _SplitSizes] = {}
        self.near_pairs: dict[str, tuple[tuple[int, int], ...]] = {}
        self.latest_default: tuple[RunConfig, dict[str, Any]] | None = None

    def plan(self, cell: Cell, source: Mapping[str, str]) -> PlannedRun:
        facts = self._facts(cell, cell.config, source)
        sizes = self._split_sizes(cell.data, cell.config.data)
        tuning = self._tuning(cell, source, sizes)
        return PlannedRun(
            run_id=make_run_id(facts),
            facts=facts,
            coordinates=cell.coordinates,
            settings={**cell.settings, **source},
            num_steps=_num_steps(cell.config, sizes, tuning),
            num_test=sizes.test,
            is_default=cell.default is not None and facts == self._default_facts(cell, cell.default, source),
            tuning=tuning,
        )

    def _tuning(self, cell: Cell, source: Mapping[str, str], sizes: _SplitSizes) -> SharedTuning | None:
        config = shared_tuning_config(cell.config)
        if config is None:
            return None
        num_steps = plan_steps(config.training, sizes.labelled).num_steps
        return SharedTuning(make_run_id(self._facts(cell, config, source)), num_steps)

    def _default_facts(self, cell: Cell, default: RunConfig, source: Mapping[str, str]) -> dict[str, Any]:
        """Return the facts of a sweep's default, which consecutive cells share."""
        if self.latest_default is None or self.latest_default[0] is not default:
            self.latest_default = default, self._facts(cell, default, source)
        return self.latest_default[1]

    def _facts(self, cell: Cell, config: RunConfig, source: Mapping[str, str]) -> dict[str, Any]:
        name, model = cell.data, config.model
        if model not in self.families:  # checked before images are decoded, which can take minutes
            self.families[model] = describe_student(model).family
            self.fingerprint(model.teacher or "")
        if name not in self.image_sets:
            self.progress.note(f"reading {name}: {source.get('data_root', source['data'])}")
            placed = replace(
                config.data, data=source["data"], data_root=read_setting("data_root", source.get("data_root"))
            )
            located = replace(config, data=placed, pixel_cache=self.pixel_cache)
            self.image_sets[name] = open_image_set(located, self.progress)
        images, teacher = self.image_sets[name].fingerprint, self.fingerprint(model.teacher or "")
        family = self.families[model]
        return run_facts(config, images=images, teacher=teacher, family=family, fingerprint=self.fingerprint)

    def _split_sizes(self, name: str, data: DataConfig) -> _SplitSizes:
        """Return the sizes of the split, which are the same for every sampling."""
        if (name, data) not in self.split_sizes:
            image_set = self.image_sets[name]
            split = make_split(
                image_set.image_index,
                image_set.digests,
                data,
                seed=0,
                blank=image_set.blank,
                near_pairs=self._near_pairs(name) if data.groups_near_duplicates else (),
            )
            self.split_sizes[name, data] = _SplitSizes(len(split.labelled), len(split.train), len(split.test))
        return self.split_sizes[name, data]

    def _near_pairs(self, name: str) -> tuple[tuple[int, int], ...]:
        """Return the near-duplicates of an image set, which are the same for every split."""
        if name not in self.near_pairs:
            image_set = self.image_sets[name]
            found = look_for_near_duplicates(
                image_set.image_index, image_set.digests, image_set.data, self.progress, self.pixel_cache
            )
            self.near_pairs[name] = tuple((pair.first, pair.second) for pair in found)
        return self.near_pairs[name]


def _num_steps(config: RunConfig, sizes: _SplitSizes, tuning: SharedTuning | None) -> int:
    """Return the number of optimizer steps of all stages: tuning of the teacher, recovery, all phases of training."""
    num_images = sizes.train if config.recovery.recover == "unlabelled" else sizes.labelled
    is_trained = config.model.method != "probe"
    training = is_trained * config.training.num_phases * plan_steps(config.training, sizes.labelled).num_steps
    tuning_before = tuning.num_steps if tuning and config.tuning.tune_teacher else 0
    return tuning_before + num_recovery_steps(config, num_images) + training
