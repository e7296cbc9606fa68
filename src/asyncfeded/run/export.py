"""Gives the model of a run to other programs: a state dict that `load_state_dict(strict=True)` of the module takes."""

from pathlib import Path

import torch
from torch import Tensor

from asyncfeded import tasks
from asyncfeded.config import Config, section
from asyncfeded.files.hdf5 import open_hdf5
from asyncfeded.files.plain import parse_toml
from asyncfeded.files.weights import MODEL, read_weights, write_weights
from asyncfeded.model.flat import FlatModel, digest_frozen
from asyncfeded.run.plan import digest_origin
from asyncfeded.run.resume import AVERAGE
from asyncfeded.store import checkpoint, record
from asyncfeded.store.sealed import checksum
from asyncfeded.tasks.contract import CheckedTask
from asyncfeded.training.trial import new_module


def export(run_dir: Path, to: Path) -> str:
    """Write the newest model of a run: of its end, or of its newest good checkpoint where it goes on or was killed.

    Args:
        run_dir: folder of the run.
        to: the file, whose name says its kind (files/weights.py); it must not be there.

    Returns:
        A sentence about what it holds.

    Raises:
        ValueError: there is no model yet, a file is damaged, or `to` cannot be written.
    """
    path, version = run_dir / MODEL, -1
    if path.exists():
        checksum(path)
        with open_hdf5(path, sealed=True) as file:
            version = int(file.attributes()["version"])
    elif not (run_dir / "record.h5").exists():
        raise ValueError(f"{run_dir}: holds no run; give the folder of a run (run_dir)")
    newest = None
    try:
        newest = checkpoint.newest(run_dir)
    except ValueError:  # it has none, or none that can be used
        if version < 0:
            raise
    if newest and newest.snapshot.version > version:
        path, version = newest.path, newest.snapshot.version
        state = _complete(run_dir, newest)
    else:
        state = read_weights(path)
    write_weights(to, state)
    return f"{to}: {len(state)} tensors, version {version} of the global model, from {path}"


def _complete(run_dir: Path, found: checkpoint.Found) -> dict[str, Tensor]:
    """The state of the module with the model, or its mean, of a checkpoint; that has no frozen parameters or integers."""
    at = found.snapshot
    config = section(Config, parse_toml(at.config, str(found.path)), str(found.path))
    task = CheckedTask(tasks.load_task(config.task), config.task["name"], tasks.load_initial(config.task))
    module, state = new_module(task, config.seed)
    statistics = [entry.name for entry in at.layout.entries if entry.offset >= at.layout.num_params]
    told = str(record.read_record(run_dir).attributes["data"])  # of the data too, which plays no part here
    origin = digest_origin(config) + digest_frozen(state.frozen(statistics))
    if other := [line.split(" ", 2)[2] for line in origin.splitlines() if line not in told.splitlines()]:
        raise ValueError(
            f"{', '.join(other[:3])}: not what {run_dir} was made from; put that back, or wait for the end of the run"
        )
    flat = FlatModel(module, "cpu", statistics)
    if flat.layout.entries != at.layout.entries:
        raise ValueError(f"{found.path}: holds another model than task {task.name} makes now")
    return flat.state_dict(torch.from_numpy(at.rule.get(AVERAGE, at.model)))
