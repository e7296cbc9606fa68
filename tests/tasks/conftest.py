"""These fixtures write the files of a task and give the task that reads them."""

import h5py
import numpy as np
import pytest

from asyncfeded import tasks
from tasks.data import LEAF, PLAYS, TEXTS, write_leaf, writers


@pytest.fixture
def h5(tmp_path):
    """Writes training and test data, by default good; gives the task."""

    def write(train=None, test=None, **keys):
        for name, people in (("train", train), ("test", test)):
            with h5py.File(tmp_path / f"{name}.h5", "w") as file:
                for writer, fields in (people or writers()).items():
                    for field, values in fields.items():
                        file[f"examples/{writer}/{field}"] = values
        return tasks.load_task(
            {"name": "federated_h5", "train": str(tmp_path / "train.h5"), "test": str(tmp_path / "test.h5")} | keys
        )

    return write


@pytest.fixture
def femnist(tmp_path):
    def write(files=LEAF, **keys):
        write_leaf(tmp_path, files)
        return tasks.load_task({"name": "femnist", "train": str(tmp_path / "train"), "test": str(tmp_path / "test")} | keys)

    return write


@pytest.fixture
def shakespeare(tmp_path):
    """Writes snippets, by default of the roles above; windows of 4."""

    def write(train=TEXTS, test=None, **keys):
        for name, roles in (("train", train), ("test", test or {"A": ["or to b"], "Z": ["nobody knows"]})):
            with h5py.File(tmp_path / f"{name}.h5", "w") as file:
                for role, snippets in roles.items():
                    file[f"examples/{role}/snippets"] = snippets
        paths = {name: str(tmp_path / f"{name}.h5") for name in ("train", "test")}
        return tasks.load_task({"name": "shakespeare", "window": 4, "hidden": 6} | paths | keys)

    return write


@pytest.fixture
def plays(tmp_path):
    def write(files=PLAYS, **keys):
        write_leaf(tmp_path, files)
        paths = {name: str(tmp_path / name) for name in ("train", "test")}
        return tasks.load_task({"name": "shakespeare", "window": 4, "hidden": 6} | paths | keys)

    return write


@pytest.fixture
def pictures(tmp_path):
    """Writes arrays as a *.npz, by default 30 images of 4 x 5 pixels whose label is the number by 3; gives the task."""

    def write(arrays=None, name="data.npz", **keys):
        number = np.arange(30, dtype=np.uint8)
        good = {"images": np.full((30, 1, 4, 5), 255, np.uint8), "labels": number % 3, "groups": number // 5}
        good["images"][:, 0, 0, 0] = number
        np.savez(tmp_path / name, **{key: value for key, value in (good | (arrays or {})).items() if value is not None})
        return tasks.load_task({"name": "images", "data": str(tmp_path / name), "width": 2, "hidden": 8} | keys)

    return write


@pytest.fixture
def text(tmp_path):
    """Writes files of text, by default of the letters below; gives the task, with samples of 4 tokens."""

    def write(files=None, **keys):
        for name, content in (files or {"a.txt": "abcdefghijklmnopqrstuvwxyz", "b/c.txt": "0123456789" * 2}).items():
            (tmp_path / "text" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "text" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        small = {"context": 4, "layers": 1, "heads": 2, "width": 8}
        return tasks.load_task({"name": "language", "data": str(tmp_path / "text")} | small | keys)

    return write


@pytest.fixture
def rows(tmp_path):
    """Writes a table, by default 20 rows of y = 3 x + 100 and a column that is constant; gives the task."""

    def write(lines=None, name="data.csv", **keys):
        good = ["x,site,y,one", *(f"{x},h{x // 4},{3 * x + 100},1" for x in range(20))]
        (tmp_path / name).write_text("\n".join(lines or good) + "\n")
        table = {"name": "tabular", "data": str(tmp_path / name), "target": "y", "features": ["x", "one"], "hidden": 8}
        return tasks.load_task(table | keys)

    return write
