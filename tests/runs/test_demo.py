"""The demo compares two starts, and nothing else differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinbud.config.schema import RunConfig
from twinbud.runs import demo as module
from twinbud.training.amp import PrecisionChoice


def test_both_arms_compute_in_the_precision_that_was_chosen_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[RunConfig] = []
    choices = iter([PrecisionChoice(True, "fast now"), PrecisionChoice(False, "slow now")])

    class EnoughError(Exception):
        """Both arms were asked for."""

    def train(config: RunConfig, progress: object) -> None:
        del progress
        configs.append(config)
        if len(configs) == len(module.ARMS):
            raise EnoughError

    monkeypatch.setattr(module, "load_dinov2_small", lambda: {})
    monkeypatch.setattr(module, "choose_precision", lambda *arguments: next(choices))
    monkeypatch.setattr(module, "train", train)
    with pytest.raises(EnoughError):
        module.demo(tmp_path / "demo")
    assert [config.model.method for config in configs] == list(module.ARMS)
    assert {config.training.precision for config in configs} == {"bf16"}
