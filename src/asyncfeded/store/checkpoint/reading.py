"""Reads checkpoints back, whoever made them: a file gives a state whose every number is in its range, or one sentence."""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from asyncfeded.config import Config, section
from asyncfeded.files.hdf5 import Group, open_hdf5
from asyncfeded.files.plain import FileFaultError, parse_toml
from asyncfeded.metric import Metrics
from asyncfeded.model.flat import Entry, Layout, named_views
from asyncfeded.model.slices import Slice
from asyncfeded.store.checkpoint.slices import Vectors, read_slices
from asyncfeded.store.checkpoint.snapshot import CLIENT_STATE, FOLDER, SCHEMA, Snapshot, numbers
from asyncfeded.store.rows import stored
from asyncfeded.store.sealed import checksum

N = TypeVar("N", int, float)

MOST_EPOCHS = np.iinfo(np.int32).max
"""Largest K that an order can hold (wire/messages.py)."""
NAME = re.compile(r"checkpoint-\d{10}\.h5")


class Found(NamedTuple):
    """The checkpoint to resume from."""

    path: Path
    snapshot: Snapshot
    damaged: tuple[str, ...]
    """The newer checkpoints that cannot be used: the file, and what is wrong with it."""


def read_checkpoint(path: Path, held: Slice | None = None, vectors: Collection[str] = ()) -> Snapshot:
    """Read a checkpoint, and verify its checksum.

    Args:
        path: of the checkpoint.
        held: the slice of a message to read of all vectors; None: everything.
        vectors: the arrays of the rule's state that are vectors.

    Raises:
        ValueError: it cannot be read, is damaged, or is not a checkpoint that this program knows.
    """
    checksum(path)
    return _load(path, held, vectors)


def newest(
    run_dir: Path,
    check: Callable[[Path, Snapshot], None] = lambda path, snapshot: None,
    held: Slice | None = None,
    vectors: Collection[str] = (),
) -> Found:
    """The newest good checkpoint of a run.

    Args:
        run_dir: folder of the run.
        check: raises ValueError for a checkpoint that cannot be used, though it is whole.
        held: see `read_checkpoint`.
        vectors: likewise.

    Raises:
        ValueError: there is none. The message names the checkpoints that cannot be used.
    """
    damaged: list[str] = []
    for path in reversed(checkpoints(run_dir / FOLDER)):
        try:
            snapshot = read_checkpoint(path, held, vectors)
            if path.name != snapshot.file_name:
                raise ValueError(f"{path}: holds what was written as {snapshot.file_name}")
            check(path, snapshot)
            return Found(path, snapshot, tuple(damaged))
        except ValueError as error:
            damaged.append(str(error))
    if not damaged:
        raise ValueError(f"{run_dir}: has no checkpoint to go on from; train with checkpoint.every_s=60 to have some")
    raise ValueError("\n  ".join([f"{run_dir}: none of its checkpoints can be used", *dict.fromkeys(damaged)]))


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, good or not, oldest first."""
    return sorted(path for path in folder.glob("checkpoint-*.h5") if NAME.fullmatch(path.name))


def describe_checkpoint(path: Path) -> dict[str, str]:
    """Describe a checkpoint for people, and verify its checksum. Raises ValueError as `read_checkpoint` does."""
    digest, at = checksum(path), _load(path)
    config, layout = section(Config, parse_toml(at.config, f"{path}: config"), f"{path}: config"), at.layout
    scores = zip(at.metrics.by_name.items(), at.score.tolist(), strict=True)
    score = ", ".join(f"{name} {metric.text(value)}" for (name, metric), value in scores)
    return {
        "checkpoint": str(path),
        "run": config.run_dir,
        "task": config.task["name"],
        "rule": config.rule["name"],
        "time": f"{at.time_s:.1f} s ({config.clock} clock)",
        "updates": f"{at.updates} merged, {at.refused} refused",
        "version": str(at.version),
        "clients": f"{len(at.clients)}, {int(at.clients['out'].sum())} of them at work",
        "score": f"{score} at version {at.score_version}" if at.score_version >= 0 else "not evaluated yet",
        "model": f"{layout.num_params} parameters, {layout.size - layout.num_params} statistics",
        **({"own": f"{at.own.length} numbers of each client"} if len(at.own) else {}),
        "size": f"{path.stat().st_size / 1e6:.1f} MB",
        "checksum": f"right (sha256 {digest})",
        "written by": " ".join(filter(None, ("asyncfeded", *map(at.provenance.get, ("asyncfeded", "commit"))))),
    }


def _load(path: Path, held: Slice | None = None, vectors: Collection[str] = ()) -> Snapshot:
    """Read a checkpoint whose checksum is right. Whoever made the file, nothing but numbers in their range comes out."""
    with open_hdf5(path, sealed=True) as file:
        attributes = file.attributes()
        if "schema" not in attributes:
            raise ValueError(f"{path}: is no checkpoint, but a trained model; give the folder of its run")
        if (schema := attributes["schema"]) != SCHEMA:
            by = f", written by asyncfeded {attributes['asyncfeded']}" if attributes.get("asyncfeded") else ""
            raise ValueError(
                f"{path}: expected a checkpoint of schema {SCHEMA}, this has schema {schema}{by}; go on with that version"
            )
        values: dict[str, Any] = {name: _number(path, attributes, name, kind) for name, kind in numbers().items()}
        layout = _layout(path, file, _number(path, attributes, "num_params", int))
        rule = {name: file.group("rule").array(name).read() for name in _members(file, "rule")}
        if file.kind("slices"):
            found = read_slices(path.parent, file.array("slices").texts(), held)
            vectors = found.rule
        else:
            bases, own = stored(path, file, "bases", layout.size), stored(path, file, "own")
            found = Vectors(_model(file, layout), bases, own, {name: rule[name] for name in vectors if name in rule})
            found = found.cut(held) if held else found
        if held is None and len(found.model) != layout.size:
            raise FileFaultError(f"{path}: its slices hold {len(found.model)} elements, expected {layout.size}")
        snapshot = Snapshot(
            config=file.array("config").text(),
            provenance={name: value for name, value in attributes.items() if isinstance(value, str)},
            layout=layout,
            model=found.model,
            bases=found.bases,
            own_names=tuple(file.array("own_names").texts()) if file.kind("own") or file.kind("own_names") else (),
            own=found.own,
            clients=_clients(file),
            metrics=(metrics := Metrics.of_rows((told := file.array("metrics")).read(), told.where)),
            score=_score(file, metrics),
            rule=rule | found.rule,
            vectors=tuple(vectors),
            **values,
        )
    parse_toml(snapshot.config, f"{path}: config")
    if fault := _fault(snapshot):
        raise FileFaultError(f"{path}: {fault}; this program wrote no such checkpoint")
    return snapshot


def _layout(path: Path, file: Group, num_params: int) -> Layout:
    """What lies where in the model."""
    names, entries, size = file.array("names").texts(), [], 0
    sliced = file.kind("slices")
    shapes = _shapes(file) if sliced else [file.group("model").array(name).shape for name in names]
    for name, shape in zip(names, shapes, strict=False):
        entries.append(Entry(name, shape, size))
        size += prod(shape)
    if (
        not 0 <= num_params <= size
        or len({*names}) < len(shapes)
        or len(names) != len(shapes)
        or (size > path.stat().st_size and not sliced)
    ):
        raise FileFaultError(f"{path}: names {len(names)} tensors of {size} elements, {num_params} of them parameters")
    return Layout(tuple(entries), num_params, size)


def _shapes(file: Group) -> list[tuple[int, ...]]:
    """The shapes of the tensors of a model that lies in slices."""
    told = file.array("shapes")
    try:
        shapes = [tuple(shape) for shape in json.loads(told.text())]
    except (TypeError, ValueError):
        shapes = [(-1,)]
    if not all(isinstance(length, int) and length >= 0 for shape in shapes for length in shape):
        raise FileFaultError(f"{told.where}: holds no shapes of tensors")
    return shapes


def _model(file: Group, layout: Layout) -> np.ndarray:
    """The model as one buffer, float32 (size,)."""
    model, tensors = np.empty(layout.size, np.float32), file.group("model")
    for name, view in named_views(torch.from_numpy(model), layout).items():
        view.numpy()[...] = _floats(tensors, name)
    return model


def _clients(file: Group) -> np.ndarray:
    array = file.array("clients")
    if array.dtype != CLIENT_STATE or len(array.shape) != 1:
        raise FileFaultError(
            f"{array.where}: is {array.dtype} {array.shape}, expected a row of {CLIENT_STATE} for each client"
        )
    return array.read()


def _score(file: Group, metrics: Metrics) -> np.ndarray:
    array = file.array("score")
    if array.dtype != np.float64 or array.shape != (len(metrics.by_name),):
        raise FileFaultError(f"{array.where}: is {array.dtype} {array.shape}, expected float64 ({len(metrics.by_name)},)")
    return array.read()


def _floats(group: Group, name: str) -> np.ndarray:
    """An array of float32, finite."""
    array = group.array(name)
    if array.dtype != np.float32:
        raise FileFaultError(f"{array.where}: is {array.dtype}, expected float32")
    values = array.read()
    if not np.isfinite([values.min(initial=0), values.max(initial=0)]).all():  # nothing is made of the size of all bases
        raise FileFaultError(f"{array.where}: holds a value that is not finite")
    return values


def _members(file: Group, name: str) -> list[str]:
    return file.group(name).names() if file.kind(name) == "group" else []


def _number(path: Path, attributes: Mapping[str, object], name: str, kind: type[N]) -> N:
    value = attributes.get(name)
    if not isinstance(value, kind):
        raise FileFaultError(f"{path}: the attribute {name!r} is {value!r}, expected {kind.__name__}")
    return value


def _fault(at: Snapshot) -> str:
    """Which number is out of its range, as a sentence; empty if none is."""
    for name in numbers().keys() - {"score_version"}:
        if not 0 <= getattr(at, name) < math.inf:
            return f"{name} = {getattr(at, name)}"
    if not -1 <= at.score_version <= at.version:
        return f"score_version = {at.score_version} at version {at.version}"
    clients = at.clients
    columns = {name: clients[name] for name in CLIENT_STATE.names or ()}
    known = np.array([at.version, *at.bases.numbers])
    wrong = {
        f"K (expected 1 to {MOST_EPOCHS})": (columns["epochs"] < 1) | (columns["epochs"] > MOST_EPOCHS),
        "a count below 0": np.any([columns[name] < 0 for name in ("rounds", "steps", "updates", "refused")], axis=0),
        "a share that is none": (columns["share"] < 0) | (columns["share"] > 1),
        "a learning rate that is none": ~((columns["learning_rate"] >= 0) & (columns["learning_rate"] < math.inf)),
        "a base that is newer than the model": (columns["base_version"] < -1) | (columns["base_version"] > at.version),
        "an order without its base": columns["out"] & ~np.isin(columns["base_version"], known),
        "a time below 0": columns["due_s"] < 0,
        "a yes or no that is neither": (columns["out"].view(np.uint8) > 1) | (columns["dropped"].view(np.uint8) > 1),
    }
    for what, where in wrong.items():
        if len(at_clients := np.flatnonzero(where)):
            client = int(at_clients[0])
            return f"client {client} has {what}: {dict(zip(columns, clients[client].tolist(), strict=True))}"
    if not len(clients):
        return "it has no clients"
    if len(at.own) and set(at.own.numbers) != set(range(len(clients))):
        return f"what is their own is there of the clients {sorted(at.own.numbers)[:20]}, expected 0 to {len(clients) - 1}"
    return ""
