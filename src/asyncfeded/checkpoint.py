"""The trained model as a file: `model.h5`, one dataset per parameter or statistic, under its name in the module."""

import os
from pathlib import Path

import h5py
from torch import Tensor

from asyncfeded.flat import Layout, named_views


def save_model(path: Path, buffer: Tensor, layout: Layout, version: int) -> None:
    """Write a model, whole or not at all: under another name first, then renamed.

    Args:
        path: the file; replaced if it exists.
        buffer: float32 (layout.size,) in host memory.
        layout: names and shapes.
        version: of the global model, stored as the attribute `version`.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    unfinished = path.with_name(path.name + ".part")
    try:
        with h5py.File(unfinished, "w") as file:
            for name, view in named_views(buffer, layout).items():
                file[name] = view.numpy()
            file.attrs["version"] = version
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
