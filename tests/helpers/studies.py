"""Small studies: recipes whose runs take a second, and synthetic records."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from helpers.builders import save_images, save_vit_teacher
from helpers.processes import Command, start
from twinbud.config.loading import settings_of
from twinbud.config.schema import RunConfig
from twinbud.study.grid import plan_cells
from twinbud.study.recipe import Recipe, read_recipe
from twinbud.study.requests import RequestedRun
from twinbud.study.run_id import make_run_id, run_facts
from twinbud.study.store import RunStore
from twinbud.study.write_tables import write_tables

EQUAL_COSTS = ("num_train", "num_steps", "epochs")
SETTINGS = {"threads": 1, "precision": "float32", "image_size": 28, "batch_size": 8, "epochs": 2}


def recipe_content(teacher: str, **changes: Any) -> dict[str, Any]:
    """A recipe of two methods and two samplings; ``changes`` replace top-level keys, and None removes one."""
    content = {
        "title": "A small study",
        "pairs": {"tiny": {"teacher": teacher, "student": "half"}},
        "grid": {
            "data": ["shades"],
            "pair": ["tiny"],
            "method": ["dual", "selection"],
            "fraction": [1.0],
            "sampling": 2,
        },
        "settings": SETTINGS,
        "baseline": {"method": "selection"},
    }
    return {name: value for name, value in {**content, **changes}.items() if value is not None}


def save_recipe(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a recipe."""
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def save_images_and_teacher(folder: Path) -> tuple[Path, str]:
    """Write images of three shades and a small teacher."""
    images = save_images(folder / "images", {"dark": 10, "grey": 10, "light": 10})
    return images, save_vit_teacher(folder / "teacher")


def start_study(recipe: Path, images: Path, runs: Path, *words: object) -> Command:
    """Start ``twinbud study``."""
    command = ["study", str(recipe), "--data", f"shades={images}", "--runs", str(runs)]
    return start([*command, *map(str, words)], runs.with_suffix(".log"))


def workers_of(command: Command) -> list[int]:
    """Process ids of the living workers of a study."""
    try:
        children = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
        lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    except OSError:
        return []
    return [pid for pid, line in lines.items() if b"resource_tracker" not in line]


def comparable(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record that must be equal in two executions of one run: no time, memory or machine."""
    cost = {name: record["cost"][name] for name in EQUAL_COSTS}
    return {name: record[name] for name in ("facts", "classes", "metrics")} | {"cost": cost}


def timeless_tables(recipe: Path, runs: Path, output: Path) -> dict[str, bytes]:
    """All files of the tables of a study, as if each run had taken the same time and memory on the same machine."""
    source, store, name = RunStore(runs), RunStore(output / "runs"), read_recipe(recipe).name
    store.create()
    store.register_images(source.image_sets())
    plan = source.read_plan(name)
    assert plan is not None
    store.add_requests(name, plan.digest, plan.runs)
    for run_id in source.done_ids():
        record = source.read(run_id)
        cost = {key: value if key in EQUAL_COSTS else 1 for key, value in record["cost"].items()}
        same = {"device_name": "A processor", "num_workers": 1, "precision": "float32", "packages": {"torch": "2"}}
        metrics = {key: 1.0 if key.endswith("_seconds") else value for key, value in record["metrics"].items()}
        store.write(run_id, {**record, "cost": cost, "environment": same, "metrics": metrics})
    paths = write_tables(recipe, store.path, output / "tables")
    return {path.name: path.read_bytes() for path in paths}


def write_records(
    recipe: Recipe,
    store: RunStore,
    *,
    images: Mapping[str, Mapping[str, Any]],
    accuracy: Mapping[str, float],
    missing: Sequence[tuple[str, int]] = (),
    failed: Sequence[tuple[str, int]] = (),
    profile: Any = None,
) -> None:
    """Fill a runs folder with synthetic records, as a study would.

    Args:
        recipe: The recipe.
        store: The runs folder.
        images: ``num_images`` and ``classes`` of each image set.
        accuracy: Mean accuracy of each method; the samplings are random around it.
        missing: Methods and samplings without a record.
        failed: Methods and samplings whose runs failed.
        profile: Replaces the recipe's profile.
    """
    store.create()
    sets = {name: {"fingerprint": f"fingerprint of {name}", **description} for name, description in images.items()}
    store.register_images(sets)
    requested = []
    for cell in plan_cells(recipe, profile=profile):
        config, at = cell.config, cell.coordinates
        facts = _facts(config, f"fingerprint of {cell.data}")
        is_default = cell.default is not None and facts == _facts(cell.default, f"fingerprint of {cell.data}")
        run_id = make_run_id(facts)
        requested.append(
            RequestedRun(run_id=run_id, profile=profile or recipe.profile, coordinates=dict(at), is_default=is_default)
        )
        if (at["method"], at["sampling"]) in failed:
            store.record_failure(run_id, "step 3: the loss is nan.")
        if (at["method"], at["sampling"]) in (*missing, *failed) or store.is_done(run_id):
            continue
        generator = random.Random(f"{at['sampling']} {run_id}")
        classes = list(images[cell.data]["classes"])
        value = accuracy[at["method"]] + generator.uniform(-0.02, 0.02)
        metrics = dict.fromkeys(("accuracy", "balanced_accuracy", "auroc_macro"), value)
        counts = [[7 if row == column else 1 for column in classes] for row in classes]
        cost = {
            "num_train": 56, "num_steps": 600, "epochs": config.training.epochs, "train_seconds": 100.0,
            "images_per_second": 50.0, "peak_memory_mib": 1000.0, "memory_before_training_mib": 500.0,
        }  # fmt: skip
        environment = {"device_name": "A processor", "num_workers": 1, "precision": "float32"}
        store.write(
            run_id,
            {
                "facts": facts,
                "settings": {name: value for name, value in settings_of(config).items() if name != "data"},
                "classes": classes,
                "metrics": {**metrics, "confusion_matrix": counts},
                "cost": cost,
                "environment": {**environment, "packages": {"torch": "2"}},
            },
        )
    store.add_requests(recipe.name, recipe.digest, requested)


def _facts(config: RunConfig, images: str) -> dict[str, Any]:
    from twinbud.models.families.vit import ViTFamily

    return run_facts(config, images=images, teacher=config.model.teacher or "", family=ViTFamily())


def save_study(folder: Path, **settings: Any) -> tuple[Path, Path]:
    """Save the recipe of a small study of four runs with ``settings``, and its images; return both paths."""
    images, teacher = save_images_and_teacher(folder)
    return save_recipe(folder / "small.yaml", recipe_content(teacher, settings={**SETTINGS, **settings})), images
