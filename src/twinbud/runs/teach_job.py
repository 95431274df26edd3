"""What a teaching knows before its first step: both networks, their features, and the images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import timm
import torch

from twinbud.config.schema import resolve
from twinbud.config.teaching import TeachConfig
from twinbud.core.errors import TwinbudError, unknown_choice
from twinbud.core.progress import Progress
from twinbud.core.rng import stream_seed
from twinbud.data.preprocessing import Preprocessing
from twinbud.models.families.base import TimmModel
from twinbud.models.families.registry import FAMILIES, family_of
from twinbud.models.student_pair import build_baseline
from twinbud.models.student_spec import StudentSpec, make_student_spec
from twinbud.models.teacher import TeacherInfo, open_teacher_at, read_teacher_info
from twinbud.runs.memory import require_training_memory
from twinbud.runs.resume import previous_precision
from twinbud.runs.teach_images import TeachingImages, list_teaching_images, open_teaching_images
from twinbud.teaching.features import FeatureShape, require_feature_shape
from twinbud.teaching.source import Source, source_image_size
from twinbud.teaching.step import FeatureMaps
from twinbud.training.amp import PrecisionChoice, choose_device, choose_precision


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """How the source is opened.

    Attributes:
        info: What is known of it.
        template: Its shapes, without a classifier.
        image_size: Side of its images in pixels: the learner's, or the next one that it can take.
        shape: Shape of its features.
    """

    info: TeacherInfo
    template: TimmModel
    image_size: int
    shape: FeatureShape

    def open(self, *, grid: tuple[int, int], device: torch.device, bf16: bool) -> Source:
        """Open it, frozen, in bf16 where the machine is faster in it and its family gains.

        Raises:
            TwinbudError: See ``open_teacher``.
        """
        family = family_of(self.template)
        network = open_teacher_at(self.info, family, self.image_size)
        network.to(device, memory_format=family.memory_format)
        bf16 = bf16 and family.gains_from_bf16(network, device)
        return Source(network, image_size=self.image_size, grid=grid, bf16=bf16)


@dataclass(frozen=True, kw_only=True)
class TeachJob:
    """All that is known before the first step.

    Attributes:
        config: Resolved settings.
        images: The decoded images and their use.
        learner_spec: Architecture and normalization of the network to teach.
        learner: The network, at random, on the device.
        learner_shape: Shape of its features.
        source: The network to learn from.
        device: Where to train.
        precision: Whether the machine is faster in bf16.
        notes: Plain sentences for the user and the card.
    """

    config: TeachConfig
    images: TeachingImages
    learner_spec: StudentSpec
    learner: TimmModel
    learner_shape: FeatureShape
    source: SourceSpec
    device: torch.device
    precision: PrecisionChoice
    notes: tuple[str, ...]

    @property
    def bf16(self) -> bool:
        """Whether the learner computes in bf16 autocast."""
        return self.precision.bf16 and self.learner_spec.family.gains_from_bf16(self.learner, self.device)

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of the learner's input."""
        return self.learner_spec.preprocessing(self.config.training.image_size)

    def open_source(self) -> Source:
        """Open the source for the learner's grid; see ``SourceSpec.open``."""
        grid = (self.learner_shape.height, self.learner_shape.width)
        return self.source.open(grid=grid, device=self.device, bf16=self.precision.bf16)

    def feature_maps(self) -> FeatureMaps:
        """Build the linear maps to the source's features."""
        return FeatureMaps(self.learner_shape, self.source.shape, seed=self.config.training.seed).to(self.device)


def prepare_teaching(config: TeachConfig, progress: Progress) -> TeachJob:
    """Check and build both networks, then list and decode the images; quick checks come first.

    Raises:
        TwinbudError: An unknown architecture, one without spatial features, an image size that a network cannot take,
            a source that cannot be read, or images that cannot be used.
    """
    device, image_size = choose_device(config.training.device), config.training.image_size
    source = describe_source(config.source, image_size)
    learner_spec = learner_spec_of(config.architecture, source.info)
    learner_outline = learner_spec.outline(num_classes=0, image_size=image_size)
    learner_shape = require_feature_shape(learner_outline, learner_spec.architecture, image_size, "--architecture")
    listed = list_teaching_images(config.data, progress)
    training = resolve(config.training, temperature=1.0, drop_path=learner_spec.family.drop_path)
    config = replace(config, training=training)
    learner = build_learner(learner_spec, config)
    require_training_memory(
        learner, device, what="training", where="--architecture", fix="Choose a smaller network or another machine"
    )
    images = open_teaching_images(listed, config, progress)
    notes = images.notes
    if source.image_size != image_size:
        notes += (f"{config.source} sees the images, of {image_size} pixels, resized to {source.image_size}",)
    return TeachJob(
        config=config,
        images=images,
        learner_spec=learner_spec,
        learner=learner.to(device, memory_format=learner_spec.family.memory_format),
        learner_shape=learner_shape,
        source=source,
        device=device,
        precision=choose_precision(training.precision, device, previous=previous_precision(config)),
        notes=notes,
    )


def describe_source(name: str, image_size: int) -> SourceSpec:
    """Read what is known of the source, without opening its weights.

    Args:
        name: As ``--teacher`` spells it.
        image_size: Of the learner, in pixels.

    Raises:
        TwinbudError: It is unknown, can take no image of about that size, or has no spatial features.
    """
    info = read_teacher_info(name, "--from")
    template = info.outline(num_classes=0)
    family = family_of(template)
    size = source_image_size(info, family, template, image_size)
    resized = info.outline(num_classes=0, **family.image_arguments(template, size, "--from"))
    shape = require_feature_shape(resized, info.architecture, size, "--from")
    return SourceSpec(info=info, template=template, image_size=size, shape=shape)


def learner_spec_of(architecture: str, source: TeacherInfo) -> StudentSpec:
    """Describe the network to teach, which has the source's normalization.

    Raises:
        TwinbudError: timm has no such architecture, or the name is one of pretrained weights.
    """
    name, _, tag = architecture.partition(".")
    if not timm.is_model(name):
        near = unknown_choice("--architecture", architecture, timm.list_models()).fix
        problem = f"timm has no architecture '{architecture}'"
        raise TwinbudError(problem, where="--architecture", fix=near or "See timm.list_models() for names")
    if tag:
        problem = f"'{architecture}' names pretrained weights, but the network starts at random"
        raise TwinbudError(problem, where="--architecture", fix=f"Give --architecture {name}")
    return make_student_spec(name, {}, mean=source.mean, std=source.std)


def build_learner(spec: StudentSpec, config: TeachConfig) -> TimmModel:
    """Build the network at random, without a classifier, on the CPU; LayerScale starts at 1.

    Raises:
        TwinbudError: See ``StudentSpec.build``.
    """
    training = config.training
    assert training.drop_path != "auto", "drop_path is resolved before building"
    size, drop_path = training.image_size, training.drop_path
    if spec.family in FAMILIES:  # it knows which tensors are LayerScale
        return build_baseline(
            spec, "timm", image_size=size, num_classes=0, drop_path=drop_path, seed=training.seed
        ).student
    seed = stream_seed("student", training.seed)
    return spec.build(image_size=size, num_classes=0, drop_path=drop_path, seed=seed)
