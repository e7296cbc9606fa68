"""A run with a task and a rule of the user's, from its folder to what other programs make of its model."""

import shutil
import sys

import pytest
import torch

from asyncfeded import tasks
from asyncfeded.files.weights import read_weights
from asyncfeded.run.export import export
from asyncfeded.store import record
from asyncfeded.tasks.contract import CheckedTask, TaskError
from conftest import run, run_asyncfeded
from run.commands import PYTHON_M, refused
from test_own import RULE

TASK = """
import numpy as np, torch
from torch import nn
from asyncfeded import Classification, Data
from asyncfeded_test_parts import Adapter

class Tuned(Classification):
    seed: int = 0

    def model(self):
        generator = torch.Generator().manual_seed(self.seed)
        return Adapter(torch.randn(5, 4, generator=generator))

    def sizes(self, num_clients, seed):
        return np.full(num_clients, 8)

    def client_data(self, client, num_clients, seed):
        return Data(torch.randint(5, (8, 3)), torch.arange(8) % 5)

    def test_data(self):
        return self.client_data(0, 1, 0)
"""
PARTS = """
import torch
from torch import nn

class Adapter(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = nn.Parameter(base, requires_grad=False)
        self.table, self.head, self.norm = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False), nn.BatchNorm1d(4)
        self.head.weight = self.table.weight
        self.register_buffer("mask", torch.tensor([True, False]))

    def forward(self, words):
        return self.head(self.norm(self.table(words).mean(1) + self.base[words].mean(1)))
"""
TOML = """
clock = "virtual"
clients = 2
limits.updates = 4
checkpoint.every_updates = 2
evaluation.average = 8.0
task.name = "tuned.py:Tuned"
rule.name = "half.py:Mine"
"""
NAMES = ["base", "table.weight", "head.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var",
         "norm.num_batches_tracked", "mask"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(own_mpi, tmp_path_factory):
    """A run that has ended, in `runs/`, and what it was made from, in `code/`."""
    folder = tmp_path_factory.mktemp("own")
    code = folder / "code"
    code.mkdir()
    for name, text in {"tuned": TASK, "half": RULE, "asyncfeded_test_parts": PARTS}.items():
        (code / f"{name}.py").write_text(text)
    (code / "run.toml").write_text(TOML)
    done = own_mpi.train(2, "code/run.toml", cwd=folder)
    assert done.status == 0, str(done)
    return folder


@pytest.fixture
def run_dir(folder, monkeypatch):
    """Folder of the run. Its code may be imported, and is forgotten again."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield next((folder / "runs").iterdir())
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_the_names_of_the_classes_are_in_the_name_of_the_folder(run_dir):
    assert run_dir.name.endswith("-Tuned-Mine")


def test_the_keys_of_its_classes_are_printed(folder):
    done = run_asyncfeded("keys", "code/run.toml", cwd=folder)
    assert done.status == 0, str(done)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["task.name", '"tuned.py:Tuned"'] in rows
    assert ["task.seed", "0"] in rows
    assert ["rule.eta", "0.5"] in rows
    assert "task.split" not in done.stdout


def test_the_record_says_what_the_run_was_made_from(folder, run_dir):
    lines = record.read_record(run_dir).attributes["data"].splitlines()
    files = [f"{folder}/code/{name}.py" for name in ("asyncfeded_test_parts", "half", "tuned")]
    assert [line.split(" ", 2)[2] for line in lines] == [*files, "the frozen parameter base"]


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_the_model_of_a_run_loads_strictly_from_its_end_and_from_its_checkpoint(run_dir, tmp_path, kind):
    if kind == "safetensors":
        pytest.importorskip("safetensors", reason="pip install 'asyncfeded[safetensors]'")
    killed = tmp_path / "killed"
    killed.mkdir()
    for name in ("config.toml", "record.h5"):
        shutil.copy(run_dir / name, killed)
    shutil.copytree(run_dir / "checkpoints", killed / "checkpoints")
    said = [export(place, tmp_path / f"{place.name}.{kind}") for place in (run_dir, killed)]
    assert said[0] == f"{tmp_path}/{run_dir.name}.{kind}: 9 tensors, version 4 of the global model, from {run_dir}/model.h5"
    assert said[1].endswith("version 4 of the global model, from " + str(killed / "checkpoints/checkpoint-0000000004.h5"))
    ended, kept = (read_weights(tmp_path / f"{place.name}.{kind}") for place in (run_dir, killed))
    module = tasks.load_task({"name": f"{run_dir.parents[1]}/code/tuned.py:Tuned"}).model()
    module.load_state_dict(kept, strict=True)
    assert sorted(ended) == sorted(kept) == sorted(NAMES)
    assert all(torch.equal(ended[name], kept[name]) for name in NAMES)
    assert ended["head.weight"].equal(ended["table.weight"])
    assert (ended["mask"].dtype, ended["norm.num_batches_tracked"].dtype) == (torch.bool, torch.int64)


def test_a_model_can_begin_with_that_of_a_run(run_dir, tmp_path):
    name = f"{run_dir.parents[1]}/code/tuned.py:Tuned"
    export(run_dir, tmp_path / "model.pt")
    expected = read_weights(tmp_path / "model.pt")
    for initial in (run_dir, run_dir / "model.h5", tmp_path / "model.pt"):
        module = CheckedTask(tasks.load_task({"name": name, "seed": 1}), name, str(initial)).model()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in module.state_dict().items())
        assert module.head.weight is module.table.weight
    with pytest.raises(TaskError, match=r"^task digits, task.initial = .*: not the weights of this Sequential; missing"):
        CheckedTask(tasks.load_task({"name": "digits"}), "digits", str(run_dir)).model()


def test_a_folder_without_a_run_and_one_without_a_checkpoint_are_told(run_dir, tmp_path):
    with pytest.raises(ValueError, match="holds no run; give the folder of a run"):
        export(tmp_path, tmp_path / "model.pt")
    shutil.copy(run_dir / "record.h5", tmp_path)
    with pytest.raises(ValueError, match="has no checkpoint"):
        export(tmp_path, tmp_path / "model.pt")


def test_a_run_is_replayed_with_its_own_code_and_refuses_other_code(folder, run_dir):
    done = run_asyncfeded("replay", run_dir, "--output", "again", cwd=folder)
    assert done.status == 0, str(done)
    one, again = (read_weights(place / "model.h5") for place in (run_dir, folder / "again"))
    assert all(torch.equal(one[name], again[name]) for name in NAMES)
    parts = folder / "code" / "asyncfeded_test_parts.py"
    parts.write_text(PARTS + "\n")
    said = f"{parts} had {len(PARTS)} bytes and has {len(PARTS) + 1}: not what the run was made from; put that back"
    refused(run_asyncfeded("resume", run_dir, "limits.updates=6", cwd=folder), said)
    parts.write_text(PARTS)


def test_ranks_with_different_code_are_refused(own_mpi, folder, tmp_path):
    """What a module is found as on each rank is up to PYTHONPATH."""
    parts = []
    for rank, text in enumerate((RULE, RULE + "\n")):
        (tmp_path / f"host{rank}").mkdir()
        (tmp_path / f"host{rank}" / "asyncfeded_test_rule.py").write_text(text)
        train = [*PYTHON_M, "train", folder / "code" / "run.toml", "rule.name=asyncfeded_test_rule:Mine", "run_dir=run"]
        parts.append((1, ["env", f"PYTHONPATH={tmp_path}/host{rank}", *train]))
    done = run(own_mpi.command(*parts), tmp_path, own_mpi.env)
    refused(done, f"{tmp_path}/host1/asyncfeded_test_rule.py: not the same as on rank 0; every host must have the same")
