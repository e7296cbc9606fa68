"""Writes what a run needs for a resume to a file, and reads it back; also writes a model alone."""

import re
import sys
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from asyncfeded.model.flat import Entry, Layout, named_views
from asyncfeded.store.checkpoint.file import checksum, text, write

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same module under its older name

SCHEMA = 2
"""Version of the layout of a checkpoint. Version 1 had no `workers_s`."""
FOLDER = "checkpoints"
"""Name of the folder of checkpoints in the folder of a run."""
NAME = re.compile(r"checkpoint-\d{10}\.h5")

CLIENT_STATE = np.dtype(
    [
        ("epochs", np.int64),  # K that it was sent last
        ("rounds", np.int64),  # asked of it, the present one included
        ("updates", np.int64),  # merged
        ("base_version", np.int64),  # of the model that it was sent last; -1: none yet
        ("out", np.bool_),  # has an order, (client, rounds - 1, base_version, epochs); its update is not taken yet
        ("due_s", np.float64),  # when that update is due; infinity: never; NaN: no order, not yet given, or wall clock
        ("refused", np.int64),  # in a row
        ("dropped", np.bool_),  # it was refused too often, and gets no more orders
    ]
)


@dataclass(frozen=True)
class Snapshot:
    """The state of a run between two updates. Arrays are C-contiguous, in host memory."""

    config: str
    """Resolved, as TOML."""
    provenance: dict[str, str]
    """Provenance of the program (record.provenance)."""
    time_s: float
    """Time on the run's clock."""
    wall_s: float
    """Wall time of training; `busy_s`, `evaluating_s` and `compute_s` are also wall times (see `Server`)."""
    workers_s: float
    """`wall_s`, summed over the workers, whose number may have changed."""
    busy_s: float
    evaluating_s: float
    compute_s: float
    version: int
    """t, the version of the global model."""
    updates: int
    """Updates merged."""
    refused: int
    update_rows: int
    """How many rows of the record's `updates` belong to this state: the rows after them came later."""
    evaluation_rows: int
    """As `update_rows`, for `evaluations`."""
    evaluation_due_s: float
    """When the next evaluation is due, on the run's clock."""
    score_version: int
    """Version at the last evaluation. -1: there was none; accuracy and loss are then NaN."""
    score_accuracy: float
    score_loss: float
    layout: Layout
    model: np.ndarray
    """float32 (size,), x_t."""
    bases: dict[int, np.ndarray]
    """float32 (size,) by version: the bases that clients train from, except that of `version`, which is the model."""
    clients: np.ndarray
    """CLIENT_STATE (clients,)."""
    rule: dict[str, np.ndarray]
    """State of the rule."""

    @property
    def file_name(self) -> str:
        """Name of its checkpoint file. These names sort by age."""
        return f"checkpoint-{self.update_rows:010d}.h5"


class Found(NamedTuple):
    """The checkpoint to resume from."""

    path: Path
    snapshot: Snapshot
    damaged: tuple[str, ...]
    """The newer checkpoints that cannot be used: the file, and what is wrong with it."""


def save(path: Path, snapshot: Snapshot) -> int:
    """Write a checkpoint. Returns its size in bytes.

    Raises:
        OSError: the file cannot be written; `path` is unchanged.
    """
    layout = snapshot.layout
    names = [entry.name.encode() for entry in layout.entries]
    arrays = {"config": text(snapshot.config.encode()), "names": text(names), "clients": snapshot.clients}
    for name, view in named_views(torch.from_numpy(snapshot.model), layout).items():
        arrays[f"model/{name}"] = view.numpy()
    arrays |= {f"bases/{version}": base for version, base in snapshot.bases.items()}
    arrays |= {f"rule/{name}": array for name, array in snapshot.rule.items()}
    numbers = {name: getattr(snapshot, name) for name in _numbers()}
    return write(path, arrays, {"schema": SCHEMA, "num_params": layout.num_params} | numbers | snapshot.provenance)


def save_model(path: Path, buffer: Tensor, layout: Layout, version: int) -> None:
    """Write a model alone: one dataset per parameter or statistic, under its name in the module.

    Args:
        path: the file; replaced if it exists.
        buffer: float32 (layout.size,) in host memory.
        layout: names and shapes.
        version: of the global model, stored as the attribute `version`.

    Raises:
        OSError: the file cannot be written; `path` is unchanged.
    """
    write(path, {name: view.numpy() for name, view in named_views(buffer, layout).items()}, {"version": version})


def read_checkpoint(path: Path) -> Snapshot:
    """Read a checkpoint, and verify its checksum.

    Raises:
        ValueError: it cannot be read, is damaged, or is not a checkpoint that this program knows.
    """
    checksum(path)
    return _load(path)


def newest(run_dir: Path) -> Found:
    """The newest good checkpoint of a run.

    Raises:
        ValueError: there is none. The message names the checkpoints that cannot be used.
    """
    damaged: list[str] = []
    for path in reversed(checkpoints(run_dir / FOLDER)):
        try:
            snapshot = read_checkpoint(path)
            if path.name != snapshot.file_name:
                raise ValueError(f"{path}: holds what was written as {snapshot.file_name}")
            return Found(path, snapshot, tuple(damaged))
        except ValueError as error:
            damaged.append(str(error))
    if not damaged:
        raise ValueError(f"{run_dir}: has no checkpoint to go on from; train with checkpoint.every_s=60 to have some")
    raise ValueError(f"{run_dir}: none of its checkpoints can be used\n  " + "\n  ".join(damaged))


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, good or not, oldest first."""
    return sorted(path for path in folder.glob("checkpoint-*.h5") if NAME.fullmatch(path.name))


def describe_checkpoint(path: Path) -> dict[str, str]:
    """Describe a checkpoint for people, and verify its checksum. Raises ValueError as `read_checkpoint` does."""
    digest, at = checksum(path), _load(path)
    config, layout = tomllib.loads(at.config), at.layout
    score = f"{at.score_accuracy:.4f} at version {at.score_version}" if at.score_version >= 0 else "not evaluated yet"
    return {
        "checkpoint": str(path),
        "run": config["run_dir"],
        "task": config["task"]["name"],
        "rule": config["rule"]["name"],
        "time": f"{at.time_s:.1f} s ({config['clock']} clock)",
        "updates": f"{at.updates} merged, {at.refused} refused",
        "version": str(at.version),
        "clients": f"{len(at.clients)}, {int(at.clients['out'].sum())} of them at work",
        "accuracy": score,
        "model": f"{layout.num_params} parameters, {layout.size - layout.num_params} statistics",
        "size": f"{path.stat().st_size / 1e6:.1f} MB",
        "checksum": f"right (sha256 {digest})",
        "written by": " ".join(filter(None, ("asyncfeded", *map(at.provenance.get, ("asyncfeded", "commit"))))),
    }


def _load(path: Path) -> Snapshot:
    with h5py.File(path, "r", locking=False) as file:
        if (schema := file.attrs.get("schema", "none, as a model alone")) != SCHEMA:
            raise ValueError(f"{path}: expected a checkpoint of schema {SCHEMA}, this has schema {schema}")
        entries, size = [], 0
        for raw in file["names"][...]:
            entries.append(Entry(raw.decode(), file["model"][raw].shape, size))
            size += prod(entries[-1].shape)
        model = np.empty(size, np.float32)
        layout = Layout(tuple(entries), int(file.attrs["num_params"]), size)
        for name, view in named_views(torch.from_numpy(model), layout).items():
            view.numpy()[...] = file["model"][name][...]
        numbers: dict[str, Any] = {name: kind(file.attrs[name]) for name, kind in _numbers().items()}
        return Snapshot(
            config=file["config"][()].decode(),
            provenance={name: value for name, value in file.attrs.items() if isinstance(value, str)},
            layout=layout,
            model=model,
            bases={int(version): base[...] for version, base in file.get("bases", {}).items()},
            clients=file["clients"][...],
            rule={name: array[...] for name, array in file.get("rule", {}).items()},
            **numbers,
        )


def _numbers() -> dict[str, type[int] | type[float]]:
    """The fields of a snapshot that are numbers, and the type of each."""
    kinds = {field.name: field.type for field in fields(Snapshot)}
    return {name: kind for name, kind in kinds.items() if kind is int or kind is float}
