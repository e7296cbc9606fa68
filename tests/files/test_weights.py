"""Files of weights: what they hold comes back, and what is no state dict is told in one sentence."""

import re

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from asyncfeded.files.plain import FileFaultError
from asyncfeded.files.weights import read_weights, weights_file, write_weights
from asyncfeded.store.checkpoint import save_model


class Tied(nn.Module):
    """Tied, frozen and half tensors; a counter and a mask."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.table.weight
        self.frozen = nn.Parameter(torch.randn(2, 3).bfloat16(), requires_grad=False)
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("mask", torch.eye(3).bool())


KINDS = ["model.pt", "model.pth", "model.safetensors", "model.h5"]


def write(path, state):
    if path.suffix == ".h5":
        save_model(path, state, 1)
    else:
        write_weights(path, state)


@pytest.mark.parametrize("name", KINDS)
def test_a_state_dict_comes_back(tmp_path, name):
    if name.endswith(".safetensors"):
        pytest.importorskip("safetensors", reason="pip install 'asyncfeded[safetensors]'")
    module, other = Tied(), Tied()
    write(tmp_path / name, module.state_dict())
    other.load_state_dict(read_weights(tmp_path / name), strict=True)
    for key, value in module.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["model.pt", "model.h5"])
def test_names_of_one_tensor_stay_names_of_one(tmp_path, name):
    write(tmp_path / name, Tied().state_dict())
    weights = read_weights(tmp_path / name)
    assert weights["head.weight"].data_ptr() == weights["table.weight"].data_ptr() != weights["frozen"].data_ptr()


def test_a_part_of_a_larger_tensor_is_written_alone(tmp_path):
    write_weights(tmp_path / "model.pt", {"part": torch.zeros(1_000_000)[:3]})
    assert (tmp_path / "model.pt").stat().st_size < 10_000


def test_no_file_is_replaced(tmp_path):
    path = tmp_path / "model.pt"
    path.write_text("mine")
    with pytest.raises(ValueError, match="is there already"):
        write_weights(path, {})
    assert path.read_text() == "mine"


def test_a_file_that_cannot_be_written_is_not_there(tmp_path, monkeypatch):
    def fill(state, path):
        path.write_bytes(b"half")
        raise RuntimeError("no space left\nmore")

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(ValueError, match=r"model.pt: cannot be written: no space left$"):
        write_weights(tmp_path / "model.pt", {"w": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"no/model.pt: cannot be written: No such file or directory"):
        write_weights(tmp_path / "no" / "model.pt", {})
    with pytest.raises(ValueError, match=r"of which kind\? expected a name that ends in .pt"):
        write_weights(tmp_path / "model.txt", {})


class Thing:
    """Something that is no tensor."""


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            lambda: {"model": {"w": torch.zeros(2)}, "epoch": 3},
            "holds 'model', 'epoch', which are no tensor; expected a state",
        ),
        (lambda: [torch.zeros(2)], "holds list, expected a state dict"),
        (lambda: {"w": Thing()}, r"holds objects of Python besides tensors \(files.test_weights.Thing\); expected a state"),
        (lambda: nn.Linear(1, 1), r"holds objects of Python besides tensors \(torch.nn.modules.linear.Linear\)"),
    ],
)
def test_what_is_no_state_dict_is_told(tmp_path, content, problem):
    torch.save(content(), tmp_path / "model.pt")
    with pytest.raises(FileFaultError, match=problem):
        read_weights(tmp_path / "model.pt")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(100)])
def test_a_damaged_file_is_told(tmp_path, name, content):
    if name.endswith(".safetensors"):
        pytest.importorskip("safetensors", reason="pip install 'asyncfeded[safetensors]'")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileFaultError, match=re.escape(str(tmp_path / name))):
        read_weights(tmp_path / name)


def test_a_table_is_no_weights(tmp_path):
    with h5py.File(tmp_path / "record.h5", "w") as file:
        file["updates"] = np.zeros(3, [("client", np.int32)])
    with pytest.raises(FileFaultError, match=r"updates: is .* expected numbers: the weights of a module"):
        read_weights(tmp_path / "record.h5")


def test_the_folder_of_a_run_means_its_model(tmp_path):
    with pytest.raises(FileFaultError, match=r"has no model.h5; give .*; asyncfeded export writes"):
        weights_file(tmp_path)
    save_model(tmp_path / "model.h5", {"w": torch.ones(2)}, 1)
    assert weights_file(tmp_path) == tmp_path / "model.h5"
    with pytest.raises(FileFaultError, match="no such file"):
        weights_file(tmp_path / "absent.pt")
