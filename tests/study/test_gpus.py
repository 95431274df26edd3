"""Several GPUs in one machine: one run a GPU, or several where their measured memory fits."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.studies import save_study
from twinbud.config.schema import TrainingConfig
from twinbud.core.errors import TwinbudError
from twinbud.study.executors import choice, gpus, local
from twinbud.study.executors.choice import ExecutorOptions, choose_executor
from twinbud.study.executors.local import LocalExecutor
from twinbud.study.run import StudyRequest, execute_study, plan_study


def machine_with(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine have GPUs of 24 GiB."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    memory = SimpleNamespace(total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: memory)
    monkeypatch.setattr(choice, "choose_device", lambda requested: torch.device("cuda", 0))


def executor_for(num_workers: int | None) -> LocalExecutor:
    executor = choose_executor(ExecutorOptions(num_workers=num_workers), TrainingConfig(threads=1))
    assert isinstance(executor, LocalExecutor)
    return executor


def test_by_default_there_is_one_run_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(4, monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert executor_for(None).gpus == ("0", "1", "2", "3")
    assert executor_for(None).num_workers == 4
    assert executor_for(2).num_workers == 2


def test_gpus_that_the_process_may_not_use_are_not_given_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(2, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5f, ")
    assert executor_for(None).gpus == ("3", "GPU-5f")


def test_runs_share_a_gpu_as_far_as_their_measured_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(2, monkeypatch)
    monkeypatch.setattr(gpus, "measure_peak_mib", lambda runs: 4500.0)
    gpus.require_shared_memory([], 8, ["0", "1"])
    expected = (
        r"--workers: 10 workers put 5 runs on a GPU, and a run needs 5100 MiB \(measured\), but a GPU has 24576 MiB\. "
        r"Give at most --workers 8\."
    )
    with pytest.raises(TwinbudError, match=expected):
        gpus.require_shared_memory([], 10, ["0", "1"])


def test_a_run_that_is_alone_on_its_gpu_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "measure_peak_mib", None)
    gpus.require_shared_memory([], 2, ["0", "1"])


@pytest.fixture(scope="module")
def recipe_and_images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe of four short runs, and its images."""
    return save_study(tmp_path_factory.mktemp("recipe_and_images"), epochs=1)


def test_workers_get_the_gpus_in_turn_and_see_no_other(
    recipe_and_images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, images = recipe_and_images
    started: list[str] = []

    class Ended:
        """A worker process that would have to train; it ends at once."""

        exitcode, sentinel = 0, 0

        def __init__(self, target: Any, args: Any, **keywords: Any) -> None:
            del keywords
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("twinbud.study.executors.worker._configure_process", lambda cores, threads: None)
                patch.setattr("twinbud.study.executors.worker.execute_pending_runs", self.execute)
                patch.setenv("CUDA_VISIBLE_DEVICES", "before")
                target(*args)

        def execute(self, *arguments: Any, **keywords: Any) -> None:
            del arguments, keywords
            started.append(os.environ["CUDA_VISIBLE_DEVICES"])

        def start(self) -> None: ...

        def join(self, timeout: float | None = None) -> None: ...

        def kill(self) -> None: ...

        def terminate(self) -> None: ...

    from multiprocessing import Pipe

    monkeypatch.setattr(local, "get_context", lambda method: SimpleNamespace(Pipe=Pipe, Process=Ended))
    monkeypatch.setattr(local._Supervisor, "_poll", lambda self: self.workers.clear())
    monkeypatch.setattr(local, "require_shared_memory", lambda *arguments: None)
    request = StudyRequest(recipe=recipe, runs=tmp_path / "runs", data=[f"shades={images}"])
    execute_study(request, plan_study(request, executor=LocalExecutor(((),) * 3, ("1", "GPU-5f"))))
    assert started == ["1", "GPU-5f", "1"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_measured_memory_is_that_of_the_largest_shape(recipe_and_images: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, images = recipe_and_images
    request = StudyRequest(recipe=recipe, runs=tmp_path / "runs", data=[f"shades={images}"])
    study = plan_study(request, executor=LocalExecutor(((),)))
    both = gpus.measure_peak_mib(study.runs)
    alone = gpus.measure_peak_mib([run for run in study.runs if run.coordinates["method"] == "selection"])
    assert both >= alone > 0
