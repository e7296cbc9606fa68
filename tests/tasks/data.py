"""The tests of tasks make small data sets with these, look at what a task gives, and find the real files."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from asyncfeded import tasks
from asyncfeded.tasks.shakespeare import VOCABULARY

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {'/'.join(SHARED.parts[-2:])} beside the repository")


def digits(**keys):
    pytest.importorskip("sklearn", reason="task digits needs scikit-learn")
    return tasks.load_task({"name": "digits", **keys})


def table(task):
    """The section of the config that gives the task."""
    name = next(name for name, kind in tasks.TASKS.items() if kind is type(task))
    return {"name": name} | task.model_dump(mode="json", by_alias=True)


def changed(task, **keys):
    """The task with other keys."""
    return tasks.load_task(table(task) | keys)


def samples(data):
    """How often each sample, image and label, occurs."""
    return Counter((x.numpy().tobytes(), int(y)) for x, y in zip(*data, strict=True))


def split(task, clients, seed=0):
    return [task.client_data(client, clients, seed) for client in range(clients)]


def synthetic(**keys):
    return tasks.load_task({"name": "synthetic", **keys})


OF = 2**20
"""The first pixel of an image tells which it is: this part of the full pixel beside it."""


def images(n, *shape, first=0):
    """Images first, first + 1, ..., of which only the first channel is not black."""
    block = np.zeros((n, *shape), np.float32)
    channel = {1: block[:, None], 2: block, 3: block[..., 0]}[len(shape)]
    channel[:, 0, 0], channel[:, 0, 1] = np.arange(first, first + n) / OF, 1.0
    return block


def numbers(data):
    """The numbers of images that `images` or `row` made."""
    return (OF * data.inputs[:, 0, 0, 0]).tolist()


def writers(count=5, shape=(4, 6)):
    """Writer wK has K + 1 images, numbered through, of class K."""
    starts = np.cumsum([0, *range(1, count)])
    return {
        f"w{k}": {"pixels": images(k + 1, *shape, first=starts[k]), "label": np.full(k + 1, k, np.int32)}
        for k in range(count)
    }


def row(pixel):
    """An image of LEAF, 784 numbers."""
    return [pixel / OF, *[0.5] * 783]


def leaf_file(people):
    """{user: (x, y)} as LEAF writes it."""
    return {
        "users": list(people),
        "num_samples": [len(y) for _, y in people.values()],
        "user_data": {user: {"x": x, "y": y} for user, (x, y) in people.items()},
    }


LEAF = {
    "train/b.json": leaf_file({"w1": ([row(4)], [1]), "w0": ([row(5), row(6)], [0, 9])}),
    "train/a.json": leaf_file({"w2": ([row(1)], [2]), "w0": ([row(2), row(3)], [3, 4])}),
    "test/a.json": leaf_file({"w0": ([row(7)], [0])}),
}
"""Four images of w0, in both files of training; one of w1 and of w2."""


def write_leaf(folder, files):
    """Every file's content as JSON, or as it is where it is bytes."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


TEXTS = {"A": ["To be,", "or not"], "B": ["abcde"], "C": ["sleep no more"]}
"""With the space between the snippets A has 13 characters, B 5, C 13."""


PLAYS = {
    "train/a.json": leaf_file({"A": (["To b", "o be"], ["e", ","]), "B": (["abcd"], ["e"])}),
    "train/b.json": leaf_file({"A": ([" be,", "be, "], [" ", "o"])}),
    "test/a.json": leaf_file({"A": (["or t"], ["o"])}),
}


def windows(data):
    """As text again."""
    return [("".join(VOCABULARY[i] for i in x), VOCABULARY[y]) for x, y in zip(data.inputs, data.targets, strict=True)]


def read_all(task):
    """What the ranks of a run with one client ask of a task, in their order."""
    task.model()
    task.client_data(0, 1, 0)
    task.test_data()


def refused(task, *words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the words are compared
        read_all(task)
    for word in words:
        assert word in str(caught.value)
