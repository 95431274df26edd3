"""What each profile changes in the defaults of the schema, which are the paper's."""

from __future__ import annotations

from typing import Any

from twinbud.config.schema import INHERITING_METHODS, WHOLE_METHODS, Profile

DEFAULT_PROFILE: Profile = "best"
"""Taken where none is named: what we recommend, beyond the paper."""

_QUICK: dict[str, Any] = {
    "near_duplicates": "group",
    "image_size": 112,
    "epochs": 40,
    "min_steps": 300,
    "learning_rate": 5e-4,
    "warmup": 0.1,
    "clip_norm": 1.0,
}
_REFITTED: dict[str, Any] = _QUICK | {
    "attention": "heads",
    "recover": "labelled",
    "recover_views": 4,
    "learning_rate": 3e-4,
    "layer_decay": 0.65,
}
"""Weights from a teacher as it is, refitted by least squares before they are trained."""
_TUNED: dict[str, Any] = _REFITTED | {
    "classifier_start": "probe",
    "tune_teacher": True,
    "recover_stream": "auto",
    "recover_metric": "logits",
    "recover_classifier": "on",
    "mixup": 0.4,
    "average": 0.99,
    "epochs": 0,
}
"""Weights from a teacher that was fine-tuned on the labelled images; the student that is fitted to it is delivered."""
_BOTTLENECKS: dict[str, Any] = {"recover_stream": "auto", "layer_decay": 1.0}
"""Networks of inverted residuals. The decay of `best` was chosen for ViT; another was not tried here."""
_TUNED_BOTTLENECKS: dict[str, Any] = _BOTTLENECKS | {
    "classifier_start": "random",
    "tune_learning_rate": 1e-3,
    "tune_layer_decay": 1.0,
    "epochs": 40,
    "distillation": "teacher",
    "alpha": 0.5,
    "temperature": 2.0,
}
"""Their students are trained after the fit, with soft targets from the tuned teacher. A probe is no start for that
teacher's classifier: its batch norms compute other features in training than in evaluation."""
_HUB_PREFIXES = ("hf-hub:timm/", "hf_hub:timm/")
_BOTTLENECK_NAMES = (
    *("efficientnet", "tf_efficientnet", "test_efficientnet", "gc_efficientnet", "tinynet", "mixnet", "tf_mixnet"),
    *("mobilenetv1", "mobilenetv2", "mobilenetv3", "mobilenetv4", "mobilenet_edgetpu", "tf_mobilenet"),
    *("mnasnet", "semnasnet", "spnasnet", "fbnet", "lcnet_", "hardcorenas"),
)
"""How the names of timm's EfficientNet and MobileNetV3 begin; a few of them have no linear bottlenecks."""
PROFILES: dict[str, dict[str, Any]] = {"best": _TUNED | {"method": "selection"}, "quick": _QUICK, "paper": {}}

_FINETUNE: dict[str, Any] = {"learning_rate": 3e-4, "layer_decay": 0.65}
_FINETUNE_OF: dict[str | None, dict[str, Any]] = {"efficientnet-lite0": {"learning_rate": 1e-3}}
"""Networks that the learning rates of a transformer do not suit."""


def profile_defaults(
    profile: str,
    method: str | None = None,
    pretrained: str | None = None,
    *,
    teacher: str | None = None,
    family: str = "described",
    is_fitted: bool = True,
) -> dict[str, Any]:
    """Return the defaults of a profile for ``method``; None stands for the profile's own method.

    In `best`, a student that is not fitted to a tuned teacher (``is_fitted`` is false) is trained instead, and so is
    that of ``dual``. Recovery does not know a network with found widths (``family`` is "auto"). Without selected
    weights (timm, xavier, kaiming, finetune, probe), there is nothing to recover, and `best` has the values of `quick`:
    small learning rates in the lower layers would keep them random. The student of ``finetune`` and ``probe`` is the
    teacher itself, and the learning rate of ``finetune`` in `best` and `quick` depends on the network ``pretrained``.
    The architecture ``teacher`` tells networks of inverted residuals from others.

    >>> profile_defaults("best", "dual")["recover"]
    'labelled'
    >>> profile_defaults("best", "timm") == profile_defaults("quick")
    True
    >>> profile_defaults("best", "finetune")["layer_decay"]
    0.65
    >>> profile_defaults("best")["epochs"], profile_defaults("best", is_fitted=False)["epochs"]
    (0, 40)
    >>> profile_defaults("best", teacher="efficientnet-lite0")["epochs"]
    40
    """
    defaults = dict(PROFILES[profile])
    if profile == "best" and method not in (None, *INHERITING_METHODS):
        defaults = dict(_QUICK)
    elif profile == "best" and family == "auto":
        defaults = _QUICK | {"method": "selection", "attention": "heads"}
    elif profile == "best":
        has_bottlenecks = teacher is not None and is_inverted_residual(teacher)
        if method == "dual" or not is_fitted:
            defaults = _REFITTED | {"method": "selection"} | (_BOTTLENECKS if has_bottlenecks else {})
        elif has_bottlenecks:
            defaults |= _TUNED_BOTTLENECKS
    if method in WHOLE_METHODS:
        defaults["student"] = "same"
    if method == "finetune" and profile != "paper":
        defaults |= _FINETUNE_OF.get(pretrained, _FINETUNE)
    return defaults


def is_inverted_residual(architecture: str) -> bool:
    """Return whether timm's name is that of an EfficientNet, MobileNet or a relative; nothing is imported.

    >>> is_inverted_residual("hf-hub:timm/mobilenetv3_large_100.ra_in1k")
    True
    """
    for prefix in _HUB_PREFIXES:
        architecture = architecture.removeprefix(prefix)
    return architecture.startswith(_BOTTLENECK_NAMES)
