"""Tasks of strangers in a real run: the same to the bit on any number of ranks; what is wrong with them is told once."""

import h5py
import pytest
import torch
from torch import nn

from conftest import run
from run.commands import ALSO_TO_A_FILE, HOST, PYTHON_M, refused

OWN = """
import os
from pathlib import Path
import numpy as np, torch
from torch import nn
from asyncfeded import Classification, Data

class Stored:
    \"\"\"The samples of tensors, one by one; each process that reads them notes whether it has MPI.\"\"\"

    def __init__(self, data, fault):
        self.data, self.fault = data, fault

    def __len__(self):
        return len(self.data.targets)

    def __getitem__(self, i):
        if self.fault == "read" and i == 5:
            raise KeyError("no such image")
        Path(f"read-by-{os.getpid()}").write_text(str("libmpi" in Path("/proc/self/maps").read_text()))
        return self.data.inputs[i], self.data.targets[i]

class Own(Classification):
    samples: int = 32
    stored: bool = False
    momentum: float | None = None
    fault: str = ""

    def model_post_init(self, context):
        if self.fault == "made":
            raise KeyError("no such layer")

    def model(self):
        module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, momentum=self.momentum), nn.ReLU(), nn.Linear(5, 3))
        module.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        module.register_buffer("random", torch.from_numpy(np.random.default_rng().random(2)), persistent=False)
        return module

    def sizes(self, num_clients, seed):
        return np.full(num_clients, self.samples)

    def client_data(self, client, num_clients, seed):
        if self.fault == "data" and client == 1:
            return {}[f"client {client}"]
        x = torch.from_numpy(np.random.randn(self.samples, 4)).float() + client  # as people write it
        data = Data(x, torch.arange(self.samples) % 3)
        return Stored(data, self.fault) if self.stored else data

    def test_data(self):
        return self.client_data(0, 1, 0)

    def loss(self, model, batch):
        if self.fault == "later" and model.training and not calls.pop():
            raise RuntimeError("a bug of mine")
        return super().loss(model, batch)

    def score(self, model, batch):
        if self.fault == "scored":
            return 0.5
        return super().score(model, batch)

calls = [False] + [True] * 20  # the trial of client 0 takes about 6
"""
KEYS = ("task.name=own.py:Own", "clock=virtual", "clients=4", "limits.updates=16")


@pytest.fixture
def train(own_mpi, folder):
    """`asyncfeded train run.toml` on some ranks, with a task in a file beside it."""
    (folder / "own.py").write_text(ALSO_TO_A_FILE + OWN)

    def start(ranks, *arguments):
        return run(own_mpi.command((ranks, [*PYTHON_M, "train", "run.toml", *KEYS, *arguments])), folder, own_mpi.env)

    return start


def test_a_model_does_not_depend_on_ranks_nor_on_who_reads_its_data_and_loads_strictly(train, folder):
    """Batch norm without momentum counts its batches in an integer buffer; the mask travels in no message.

    On 2 ranks the samples are a data set, read by new processes with nothing of MPI in their memory; on 4 they are tensors.
    """
    ended = [train(2, "run_dir=on2", "task.stored=true", "training.loader_workers=1"), train(4, "run_dir=on4")]
    assert [done.status for done in ended] == [0, 0], f"{ended[0]}\n{ended[1]}"
    one, other = [done.result for done in ended]
    assert one["model_sha256"] == other["model_sha256"]
    assert (one["metrics"], one["refused"]) == (other["metrics"], 0)
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, momentum=None), nn.ReLU(), nn.Linear(5, 3))
    module.register_buffer("mask", torch.zeros(2))
    with h5py.File(folder / "on2" / "model.h5") as file:
        module.load_state_dict({name: torch.tensor(data[()]) for name, data in file.items()}, strict=True)
    assert module.mask.tolist() == [0.0, -torch.inf]
    assert module[1].num_batches_tracked == 0
    assert {path.read_text() for path in folder.glob("read-by-*")} == {"False"}


@pytest.mark.parametrize(
    ("arguments", "sentence", "last"),
    [
        (
            ("task.fault=made",),
            "own.py:Own, made from its keys: raised KeyError: 'no such layer'",
            "KeyError: 'no such layer'",
        ),
        (("task.fault=data",), "own.py:Own, client_data of client 1: raised KeyError: 'client 1'", "KeyError: 'client 1'"),
        (
            ("task.samples=33",),
            "a batch of 1 in training (client 0 has 33 samples",
            'training.last_batch = "join" or "drop"',
        ),
        (("task.fault=scored",), "own.py:Own, score: gave back float, expected for each metric its sum and its count", ""),
        (
            ("task.fault=read", "task.stored=true", "training.loader_workers=1"),
            "own.py:Own, client 0, sample 5: raised KeyError: 'no such image'",
            "KeyError: 'no such image'",
        ),
        (("task.samples=0",), "own.py:Own, sizes: client 0 has 0 training samples, expected at least 1", ""),
    ],
)
def test_what_is_wrong_with_a_task_is_told_once_before_training(train, folder, arguments, sentence, last):
    done = train(3, "run_dir=run", *arguments)
    assert (done.status, done.stdout) == (2, ""), str(done)
    assert done.stderr.count("asyncfeded: ") == done.stderr.count(sentence) == 1, str(done)
    assert last in done.stderr
    assert "asyncfeded/run/" not in done.stderr, str(done)  # none of our own frames
    assert not (folder / "run").exists()


def test_a_missing_key_of_a_task_is_refused_as_before(train):
    refused(train(2, "task.sample=3"), "unknown key sample; did you mean samples?")


def test_what_a_task_raises_while_it_trains_ends_the_job_with_its_own_traceback(train, folder):
    done = train(2, "run_dir=later", "limits.updates=100000", "task.fault=later")
    assert done.status not in (0, 2), str(done)
    said = (folder / "stderr-1").read_text()
    head = f"asyncfeded: rank 1 (worker) on {HOST}: uncaught error, ending the job\ntask {folder}/own.py:Own, round "
    assert head in said, said
    assert ", a batch of 32: raised RuntimeError: a bug of mine\nTraceback (most recent call last):" in said
    assert said.count("a bug of mine") == 3  # the sentence, the line that raised, and the error
    assert "in _loss" not in said
