"""Samples are read the same in any process; what is wrong with them is told with client, sample and traceback."""

import importlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, Subset

from asyncfeded.tasks.contract import TaskError
from asyncfeded.training.batches import ClientData, read, read_round, successive
from asyncfeded.training.loader import Loader, moved
from conftest import is_dead

CPU = torch.device("cpu")


def mpi_is_loaded():
    return "libmpi" in Path("/proc/self/maps").read_text()


class Images:
    """Samples that draw from every generator, and say in which process they were read."""

    def __init__(self, bad=()):
        self.bad = bad

    def __len__(self):
        return 20

    def __getitem__(self, i):
        if i in self.bad:
            return {}["no such file"]
        x = torch.rand(3) + np.random.rand() + random.random() + i
        return {"x": x, "i": i, "pid": os.getpid(), "group": os.getpgid(0), "mpi": mpi_is_loaded()}


class Tokens(IterableDataset):
    """An endless stream that begins where it draws to begin."""

    def __iter__(self):
        i = int(torch.randint(1000, ()))
        while True:
            yield {"x": torch.rand(1) + i, "i": i, "pid": os.getpid()}
            i += 1


def loader(workers=0, collate=None, device=CPU):
    return Loader(SimpleNamespace(name="mine", collate=collate), device, workers, 7)


def rounds(data, client=3):
    """The batches of two rounds of two epochs, as lists; the round between them is given up after a batch."""
    torch.manual_seed(0)
    got = []
    for number in range(3):
        for batch, samples in read_round(ClientData(data, 8), [8, 8, 4], 6, client, number):
            assert len(batch["i"]) == samples
            got.append({key: part.tolist() for key, part in batch.items()})
            if number == 1:
                break
    return got


def without(batches, *keys):
    return [{key: part for key, part in batch.items() if key not in keys} for batch in batches]


def values(batches, key):
    return {value for batch in batches for value in batch[key]}


@pytest.fixture(scope="module")
def others():
    """A loader with two processes, started by one that has MPI."""
    importlib.import_module("asyncfeded.mpi.launcher")
    return loader(workers=2)


@pytest.fixture(scope="module")
def images(others):
    return others.add(Images()), others.add(Images(bad=(13,)))


# --- in other processes


def test_samples_and_their_random_numbers_are_the_same_in_any_number_of_processes(images):
    here, there = rounds(loader().add(Images())), rounds(images[0])
    assert len(here) == 13
    assert without(here, "pid", "group", "mpi") == without(there, "pid", "group", "mpi")
    assert here[0] != here[3]
    pids = values(there, "pid")
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_processes_are_new_programs_and_get_no_signals_of_the_job(images):
    """A process that was forked would have MPI in its memory, as this one has."""
    assert mpi_is_loaded()
    there = rounds(images[0])
    assert values(there, "mpi") == {False}
    assert values(there, "group") == values(there, "pid")


def test_an_error_in_a_process_is_told_with_sample_and_traceback(images):
    with pytest.raises(TaskError) as told:
        rounds(images[1])
    text = str(told.value)
    assert text.startswith("task mine, round 0 of client 3, sample 13: raised KeyError: 'no such file'\nTraceback (most")
    assert 'return {}["no such file"]' in text
    assert "training/loader.py" not in text


def test_a_stream_is_read_in_one_process_and_begins_anew_in_every_epoch():
    one = loader(workers=2)
    here, there = rounds(loader().add(Tokens(), 20)), rounds(one.add(Tokens(), 20))
    assert without(here, "pid") == without(there, "pid")
    assert len(values(there, "pid")) == 1
    starts = [batch["i"][0] for batch in here]
    assert starts[1] == starts[0] + 8
    assert starts[3] != starts[0] + 20


TIED = """
import os, signal
from types import SimpleNamespace
import torch
from asyncfeded.training.batches import read
from asyncfeded.training.loader import Loader

class Pids:
    def __len__(self):
        return 1
    def __getitem__(self, i):
        return os.getpid()

if __name__ == "__main__":
    loader = Loader(SimpleNamespace(name="mine", collate=None), torch.device("cpu"), 1, 0)
    [(pid, _)] = read(loader.add(Pids()), [range(1)], (0,), "")
    print(int(pid), flush=True)
    signal.pause()
"""


def test_processes_end_with_a_rank_that_is_killed(tmp_path):
    (tmp_path / "rank.py").write_text(TIED)
    rank = subprocess.Popen([sys.executable, tmp_path / "rank.py"], stdout=subprocess.PIPE, text=True)
    pid = int(rank.stdout.readline())
    assert not is_dead(pid)
    rank.kill()
    rank.wait()
    rank.stdout.close()
    deadline = time.monotonic() + 60
    while not is_dead(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Fatal(Images):
    def __getitem__(self, i):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_is_told():
    with pytest.raises(TaskError, match="task mine: a loader process has ended: DataLoader worker"):
        rounds(loader(workers=1).add(Fatal()))


def test_samples_that_cannot_be_sent_are_told_before_a_process_starts():
    with pytest.raises(TaskError, match=r"task mine: its samples cannot be sent to loader processes \(.*; open files in"):
        rounds(loader(workers=1).add([lambda: 0] * 20))


def with_a_lambda(samples):
    return {"i": torch.tensor(samples), "wrong": lambda: 0}


def test_a_batch_that_cannot_be_sent_is_told():
    """In a loader process it would be lost, and the rank would wait for ever."""
    with pytest.raises(TaskError, match="round 0 of client 3, a batch for another process: raised"):
        rounds(loader(workers=1, collate=with_a_lambda).add(list(range(20))))


# --- what is wrong with samples


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: Subset(data, range(20))])
def test_the_sample_that_fails_is_told(wrap):
    with pytest.raises(TaskError, match="task mine, round 0 of client 3, sample 13: raised KeyError: 'no such file'"):
        rounds(loader().add(wrap(Images(bad=(13,)))))


@pytest.mark.parametrize(
    ("odd", "sentence"),
    [
        (torch.ones(4), "raised RuntimeError: stack expects each tensor to be equal size"),
        (object(), "raised TypeError: expected Tensor as element 9"),
    ],
)
def test_the_sample_that_makes_no_batch_is_told(odd, sentence):
    samples = [torch.ones(3)] * 9 + [odd] + [torch.ones(3)] * 10
    with pytest.raises(TaskError, match=rf"a batch with sample 9: {sentence}.*give the task a method collate\(samples\)"):
        list(read(loader().add(samples), [range(20)], (0,), "client 3"))


def test_a_stream_that_ends_too_soon_is_told():
    with pytest.raises(TaskError, match="round 0 of client 3: the samples end after 17, but sizes says that there are more"):
        rounds(loader().add(SimpleIterable([{"i": i} for i in range(17)]), 20))


class SimpleIterable:
    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


def test_a_stream_without_a_size_is_read_to_its_end():
    data = loader().add(SimpleIterable(range(7)))
    sizes = [samples for _, samples in read(data, successive([3] * 9), (0,), "")]
    assert sizes == [3, 3, 1]


# --- how they are read


def test_a_task_may_make_batches_itself():
    data = loader(collate=lambda samples: {"i": samples, "longest": max(samples)}).add(list(range(20)))
    [(batch, samples)] = read(data, [range(4, 8)], (0,), "")
    assert (batch, samples) == ({"i": [4, 5, 6, 7], "longest": 7}, 4)


def test_several_samples_are_read_at_once_where_a_data_set_can():
    class Table:
        def __len__(self):
            return 20

        def __getitems__(self, rows):
            return [10 * row for row in rows]

        def __getitem__(self, row):
            raise AssertionError

    [(batch, _)] = read(loader().add(Table()), [torch.tensor([7, 2])], (0,), "")
    assert batch.tolist() == [70, 20]
    Table.__getitems__ = lambda self, rows: [0]  # too few: one by one
    with pytest.raises(TaskError, match="raised AssertionError"):
        next(read(loader().add(Table()), [torch.tensor([7, 2])], (0,), ""))


def test_reading_leaves_the_global_generators_as_they_are():
    data = loader().add(Images())
    states = []
    for batches in ([], [range(20)]):
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        list(read(data, batches, (0,), ""))
        states.append((torch.rand(1).item(), np.random.rand(), random.random()))
    assert states[0] == states[1]


def test_nothing_but_the_batch_is_held():
    alive, most = 0, 0

    class Sample:
        def __init__(self):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self):
            nonlocal alive
            alive -= 1

    class Lazy(Images):
        def __getitem__(self, i):
            return Sample()

    for _ in read_round(ClientData(loader(collate=len).add(Lazy()), 4), [4] * 5, 10, 0, 0):
        pass
    assert (alive, most) == (0, 4)


@dataclass
class Batch:
    x: torch.Tensor
    name: str


Pair = namedtuple("Pair", "x y")


class Encoding:
    def __init__(self):
        self.device = CPU

    def to(self, device):
        self.device = device
        return self


def test_batches_of_any_structure_are_moved():
    x, meta = torch.ones(2), torch.device("meta")
    batch = moved({"a": [x, "text"], "b": Pair(x, (x, 3)), "c": Batch(x, "name"), "d": Encoding(), "e": None}, meta)
    found = [batch["a"][0], batch["b"].x, batch["b"].y[0], batch["c"].x, batch["d"]]
    assert [part.device for part in found] == [meta] * 5
    assert (batch["a"][1], batch["b"].y[1], batch["c"].name, batch["e"]) == ("text", 3, "name", None)
