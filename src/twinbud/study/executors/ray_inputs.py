"""The driver's side of inputs: copies in the object store, and the error for a worker with other files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinbud.core.errors import TwinbudError, first_line
from twinbud.core.progress import SilentProgress
from twinbud.study.executors.file_transfer import pack
from twinbud.study.executors.inputs import decoded_rows, describe_difference, input_files, input_paths
from twinbud.study.executors.ray_task import InputCopy, InputsDiffer
from twinbud.study.grid import PlannedRun, checked_config


class InputCopies:
    """Copies of inputs in Ray's object store, each made when the first worker lacks the input.

    Args:
        ray: The module, connected to a cluster.
    """

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        self.copies: dict[Path, InputCopy] = {}

    def select(self, inputs: Mapping[str, Path]) -> dict[str, InputCopy]:
        """Return the copies that exist of some inputs, by setting."""
        return {name: self.copies[path] for name, path in inputs.items() if path in self.copies}

    def add(self, name: str, settings: Mapping[str, Any]) -> None:
        """Copy the files of an input, unless that has been done.

        Args:
            name: The setting that names the files.
            settings: The settings of a run.

        Raises:
            TwinbudError: A file cannot be read, or the object store is too small.
        """
        path = input_paths(settings)[name]
        if path in self.copies:
            return
        base, files = input_files(name, path, settings)
        chunks: list[Any] = []
        try:
            digest = pack(base, files, lambda chunk: chunks.append(self.ray.put(chunk)))
        except OSError as error:
            problem = f"a file cannot be read for the workers ({error.strerror or error})"
            raise TwinbudError(problem, where=str(error.filename or path), fix="Check its permissions") from error
        except self.ray.exceptions.RayError as error:
            problem = f"the files do not fit in Ray's object store ({first_line(error)})"
            fix = "Put them on a file system that all nodes see at the same path"
            raise TwinbudError(problem, where=str(path), fix=fix) from error
        self.copies[path] = InputCopy(digest, os.path.relpath(path, base), tuple(chunks))


def input_difference(run: PlannedRun, outcome: InputsDiffer) -> TwinbudError:
    """Return the error for a worker with other files; it names an image that differs.

    Args:
        run: The run.
        outcome: What the worker has found.
    """
    from twinbud.study.planning import open_image_set

    where = f"node {outcome.machine}: {outcome.where}"
    if not outcome.rows:
        problem = f"the {outcome.name} differs from that of the study"
        return TwinbudError(problem, where=where, fix="Give all nodes the same file")
    image_set = open_image_set(checked_config(run.settings), SilentProgress())
    text = describe_difference(decoded_rows(image_set.image_index, image_set.digests), outcome.rows)
    fix = "Give all nodes the same images, or remove these from the node, which then gets a copy"
    return TwinbudError(f"the images differ from those of the study: {text}", where=where, fix=fix)
