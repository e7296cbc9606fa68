"""`asyncfeded check`: what it counts, and that it refuses what a run would refuse."""

import sys

import pytest

from asyncfeded.run import check as room
from asyncfeded.run.check import check
from asyncfeded.wire.messages import HEAD
from conftest import run_asyncfeded

OWN = """
import torch
from torch import nn
from asyncfeded import Data, Decision, Reply, Settings
from asyncfeded.tasks.synthetic import Synthetic

class Own(Synthetic):
    fault: str = ""

    def model(self):
        module = nn.Sequential(nn.Linear(60, 4), nn.BatchNorm1d(4), nn.Linear(4, 10))
        module[2].bias.requires_grad = False
        return module

    def client_data(self, client, num_clients, seed):
        data = super().client_data(client, num_clients, seed)
        if self.fault == "data" and client == num_clients - 1:
            raise ValueError("its file is gone")
        return data

    def loss(self, model, batch):
        if self.fault == "loss":
            return super().loss(model, batch).detach()
        return super().loss(model, batch)

    def score(self, model, batch):
        if self.fault == "score":
            raise KeyError("accuracy")
        return super().score(model, batch)

class Rule(Settings):
    proximal: float = 0.0

    def init(self, model, epochs):
        return {}

    def on_arrival(self, update, model, state):
        return Decision(0.0, 1.0, Reply(update.client, 1))
"""


@pytest.fixture(scope="module")
def own(runs):
    """The arguments of a run with a task in a file."""
    (runs / "checked.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        yield runs / "run.toml", [f"task.name={runs}/checked.py:Own"]
    del sys.modules["checked"]


def test_what_a_model_holds_sends_and_keeps(own):
    file, overrides = own
    found = check(file, overrides, 3)
    figures = found.figures
    trained = 60 * 4 + 4 + (4 + 4) + 4 * 10  # a layer, a batch norm, and a layer whose bias is frozen
    statistics = 4 + 4  # mean and variance
    assert figures["trained"].startswith(f"{trained} in 5 tensors")
    assert figures["statistics"].startswith(f"{statistics} in 2 tensors")
    assert figures["frozen"].startswith("10 in 1 tensors")
    assert figures["other"].startswith("1 in 1 tensors")  # num_batches_tracked
    assert figures["  0.weight"] == "(4, 60)"
    assert figures["update"].startswith(f"{HEAD + 4 * (trained + statistics)} bytes")
    assert figures["server"] == f"{(4 * (2 + 3) * (trained + statistics) + 2 * 8) / 1e3:.3g} kB for its models"  # and K
    assert "own" not in figures
    assert figures["run"] == "wall clock, 1 server and 2 clients on 3 ranks"
    assert figures["batch"] == "float32 (32, 60), int64 (32,)"
    assert found.sentences == ()


def test_what_a_client_keeps_of_its_optimizer(own):
    file, overrides = own
    figures = check(file, [*overrides, "training.momentum=0.5", "training.optimizer_state=kept"], 3).figures
    trained = 60 * 4 + 4 + (4 + 4) + 4 * 10
    assert figures["own"].startswith(f"{5 + trained} in 6 tensors, each client's own")
    assert figures["update"].startswith(f"{HEAD + 4 * (trained + 8 + 5 + trained)} bytes")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["task.fault=data"], r"client_data of client 3: its file is gone"),
        (["task.fault=loss"], r"loss: does not depend on the parameters"),
        (["task.fault=score"], r"(?s)score: raised KeyError.*Traceback"),
        (["rule.name={folder}/checked.py:Rule"], r"rule Rule, on_arrival, round 0 of client 0: gave back the replies Reply"),
        (["training.nothing=1"], r"unknown key training.nothing|training: unknown key nothing"),
        (["server=9"], r"server = 9, but the ranks are 0 to 4"),
    ],
)
def test_what_it_refuses(own, changes, sentence):
    file, overrides = own
    with pytest.raises(ValueError, match=sentence):
        check(file, [*overrides, *(change.format(folder=file.parent) for change in changes)])


def test_clients_that_take_long_are_not_all_tried(own, monkeypatch):
    monkeypatch.setattr(room, "LOAD_S", 1e-9)
    found = check(*own)
    assert found.sentences == ("1 of 4 clients were tried; a run tries all of them, in more time",)


def test_the_command(folder):
    done = run_asyncfeded("check", "run.toml", "--ranks", 3, cwd=folder)
    assert done.status == 0, str(done)
    assert "1 server and 2 clients on 3 ranks" in done.stdout
    assert done.stderr == ""
    (folder / "taken").mkdir()
    (folder / "taken" / "model.h5").touch()
    done = run_asyncfeded("check", "run.toml", "run_dir=taken", cwd=folder)
    assert done.status == 2, str(done)
    assert done.stderr.startswith("asyncfeded: run_dir = 'taken' holds model.h5, which the run would replace"), str(done)


def test_it_tries_the_parts_of_every_rank_of_a_client(own):
    """Batch norm cannot train on one sample, which the last of 4 ranks gets of a batch of 7."""
    path, overrides = own
    keys = [*overrides, "ranks_per_client=4", "clients=2", "training.last_batch=drop"]
    with pytest.raises(ValueError, match=r"a batch of 1 in training .*each of the 4 ranks of the client has a part"):
        check(path, [*keys, "training.batch_size=7"])
    with pytest.raises(ValueError, match=r"client 0 has a batch of 3, and each of the 4 ranks that train it needs a sample"):
        check(path, [*keys, "training.batch_size=3", "training.sync_batch_norm=true"])
    found = check(path, [*keys, "training.batch_size=8", "servers=2", "evaluator=2"])
    assert found.figures["run"].endswith("a server of 2 ranks and 2 clients of 4 ranks on 11 ranks")
