"""The trained model as a file."""

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from asyncfeded.model.flat import FlatModel, named_views
from asyncfeded.store.checkpoint import save_model


@pytest.fixture
def flat():
    torch.manual_seed(0)
    return FlatModel(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))


def test_every_parameter_and_statistic_is_saved_under_its_name(tmp_path, flat):
    save_model(tmp_path / "model.h5", flat.state_dict(flat.buffer), 0)
    with h5py.File(tmp_path / "model.h5") as file:
        saved = {name: torch.tensor(file[name][()]) for name in file}
    expected = flat.module.state_dict()
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], value) and saved[name].dtype == value.dtype for name, value in expected.items())


class Everything(nn.Module):
    """Tied, frozen, without dimensions, empty; masks, tables and counters, kept or not; half of float32's bits."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(300, 300, bias=False), nn.Linear(300, 300, bias=False)
        self.two.weight = self.one.weight
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Parameter(torch.randn(2, 3).bfloat16(), requires_grad=False)
        self.scale, self.empty = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.zeros(0, 4))
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
        self.register_buffer("allowed", torch.ones(4, 4).tril().bool())
        self.register_buffer("halves", torch.ones(2).half())
        self.register_buffer("wide", torch.rand(2, dtype=torch.float64))
        self.register_buffer("waves", torch.ones(2, dtype=torch.complex64))
        self.register_buffer("table", torch.rand(5), persistent=False)


def test_a_module_of_every_kind_takes_back_what_was_saved(tmp_path):
    """As the README says, strictly, and to the bit; the tied weight is written once."""
    flat = FlatModel(Everything(), statistics=["norm.running_mean", "norm.running_var"])
    x = torch.rand(flat.layout.size)
    save_model(tmp_path / "model.h5", flat.state_dict(x), 0)
    module = Everything()
    with h5py.File(tmp_path / "model.h5") as file:
        assert module.load_state_dict({name: torch.tensor(data[()]) for name, data in file.items()}, strict=True)
    expected = flat.module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())
    assert torch.equal(module.two.weight, named_views(x, flat.layout)["one.weight"])
    assert (tmp_path / "model.h5").stat().st_size < 1.1 * 4 * 300 * 300


def test_what_is_saved_is_the_buffer_given(tmp_path, flat):
    save_model(tmp_path / "model.h5", flat.state_dict(torch.arange(21.0)), 0)
    with h5py.File(tmp_path / "model.h5") as file:
        assert file["0.weight"][()].tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
        assert file["1.running_var"].dtype == np.float32


def test_the_version_is_saved(tmp_path, flat):
    save_model(tmp_path / "model.h5", flat.state_dict(flat.buffer), 12)
    with h5py.File(tmp_path / "model.h5") as file:
        assert dict(file.attrs) == {"version": 12}


def test_a_parameter_without_dimensions_is_saved(tmp_path):
    module = nn.Module()
    module.scale = nn.Parameter(torch.tensor(3.0))
    flat = FlatModel(module)
    save_model(tmp_path / "model.h5", flat.state_dict(flat.buffer), 0)
    with h5py.File(tmp_path / "model.h5") as file:
        assert file["scale"][()] == 3.0


def test_nothing_else_is_left_in_the_folder(tmp_path, flat):
    save_model(tmp_path / "model.h5", flat.state_dict(flat.buffer), 0)
    assert [path.name for path in tmp_path.iterdir()] == ["model.h5"]


def test_a_model_replaces_the_one_before(tmp_path, flat):
    save_model(tmp_path / "model.h5", flat.state_dict(flat.buffer), 1)
    save_model(tmp_path / "model.h5", flat.state_dict(flat.buffer), 2)
    with h5py.File(tmp_path / "model.h5") as file:
        assert file.attrs["version"] == 2


def test_a_model_that_cannot_be_written_leaves_the_one_before(tmp_path, flat):
    save_model(tmp_path / "model.h5", flat.state_dict(flat.buffer), 1)
    with pytest.raises(TypeError, match="no native HDF5 equivalent"):  # after the tensors have been written
        save_model(tmp_path / "model.h5", flat.state_dict(flat.buffer), object())
    with h5py.File(tmp_path / "model.h5") as file:
        assert file.attrs["version"] == 1
