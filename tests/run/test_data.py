"""A run is resumed and replayed on its own data only."""

import h5py
import numpy as np
import pytest

from asyncfeded import tasks
from asyncfeded.run.data import check_data
from asyncfeded.tasks.contract import CheckedTask
from asyncfeded.training.heterogeneity import PROFILE
from conftest import run_asyncfeded, tables
from run.commands import refused


def profiles(*samples):
    clients = np.zeros(len(samples), PROFILE)
    clients["samples"] = samples
    return clients


def record_of(samples, data):
    return tables(clients=profiles(*samples), data=data)


def test_the_files_of_a_task_are_those_that_its_keys_name(tmp_path):
    for name in ("train.h5", "test.h5"):
        (tmp_path / name).write_bytes(b"x")
    task = tasks.load_task({"name": "femnist", "train": str(tmp_path / "train.h5"), "test": str(tmp_path / "test.h5")})
    assert CheckedTask(task, "femnist").paths() == {name: tmp_path / f"{name}.h5" for name in ("train", "test")}
    assert CheckedTask(tasks.load_task({"name": "synthetic"}), "synthetic").paths() == {}


def test_what_differs_is_told(tmp_path):
    check_data(tmp_path, record_of((3, 4), "1 2 train\n"), "1 2 train\n", profiles(3, 4))
    said = "train had 2 bytes and has 3; client 1 had 4 samples and has 5, and 1 more clients differ: not what"
    with pytest.raises(ValueError, match=said):
        check_data(tmp_path, record_of((3, 4, 5), "1 2 train\n"), "1 3 train\n", profiles(3, 5, 4))


def test_an_older_record_without_a_digest_is_compared_by_samples(tmp_path):
    check_data(tmp_path, record_of((3, 4), None), "1 3 train\n", profiles(3, 4))
    with pytest.raises(ValueError, match=r"client 0 had 3 samples and has 2: not what the run was made from; put that back"):
        check_data(tmp_path, record_of((3, 4), None), "1 3 train\n", profiles(2, 4))


CONFIG = """
clock = "virtual"
clients = 2
task = {name = "femnist", train = "train.h5", test = "test.h5", classes = 2, model = "mlp", hidden = 2}
limits = {updates = 4}
checkpoint = {every_updates = 2}
"""


def write(path, labels):
    with h5py.File(path, "w") as file:
        for writer in "ab":
            file[f"examples/{writer}/pixels"] = np.ones((len(labels), 4, 4), np.float32) / 2
            file[f"examples/{writer}/label"] = labels


def test_other_data_under_the_same_name_is_refused(tmp_path):
    """The file is replaced by another of the same size: nothing but a label differs."""
    (tmp_path / "run.toml").write_text(CONFIG)
    for name in ("train.h5", "test.h5"):
        write(tmp_path / name, [0, 1, 1])
    done = run_asyncfeded("train", "run.toml", "run_dir=run", "--ranks", 2, cwd=tmp_path)
    assert done.status == 0, str(done)
    write(tmp_path / "train.h5", [0, 1, 0])
    said = "run: train has other content: not what the run was made from; put that back, or train anew\n"
    refused(run_asyncfeded("resume", "run", "limits.updates=8", cwd=tmp_path), said)
    refused(run_asyncfeded("replay", "run", cwd=tmp_path), said)
    write(tmp_path / "train.h5", [0, 1, 1])
    assert run_asyncfeded("resume", "run", "limits.updates=8", cwd=tmp_path).status == 0
