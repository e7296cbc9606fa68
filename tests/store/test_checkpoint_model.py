"""The trained model as a file."""

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from asyncfeded.model.flat import FlatModel
from asyncfeded.store.checkpoint import save_model
from asyncfeded.store.checkpoint.file import SMALL
from store.snapshots import LAYOUT, noise


@pytest.fixture
def flat():
    torch.manual_seed(0)
    return FlatModel(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))


def test_every_parameter_and_statistic_is_saved_under_its_name(tmp_path, flat):
    """A module loads them with load_state_dict; its integer buffers are its own."""
    save_model(tmp_path / "model.h5", flat.buffer, flat.layout, 0)
    with h5py.File(tmp_path / "model.h5") as file:
        saved = {name: torch.from_numpy(file[name][()]) for name in file}
    expected = {name: value for name, value in flat.module.state_dict().items() if value.is_floating_point()}
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], value) and saved[name].shape == value.shape for name, value in expected.items())


def test_what_is_saved_is_the_buffer_given(tmp_path, flat):
    save_model(tmp_path / "model.h5", torch.arange(21.0), flat.layout, 0)
    with h5py.File(tmp_path / "model.h5") as file:
        assert file["0.weight"][()].tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
        assert file["1.running_var"].dtype == np.float32


def test_the_version_is_saved(tmp_path, flat):
    save_model(tmp_path / "model.h5", flat.buffer, flat.layout, 12)
    with h5py.File(tmp_path / "model.h5") as file:
        assert dict(file.attrs) == {"version": 12}


def test_a_parameter_without_dimensions_is_saved(tmp_path):
    module = nn.Module()
    module.scale = nn.Parameter(torch.tensor(3.0))
    flat = FlatModel(module)
    save_model(tmp_path / "model.h5", flat.buffer, flat.layout, 0)
    with h5py.File(tmp_path / "model.h5") as file:
        assert file["scale"][()] == 3.0


def test_nothing_else_is_left_in_the_folder(tmp_path, flat):
    save_model(tmp_path / "model.h5", flat.buffer, flat.layout, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["model.h5"]


def test_a_model_replaces_the_one_before(tmp_path, flat):
    save_model(tmp_path / "model.h5", flat.buffer, flat.layout, 1)
    save_model(tmp_path / "model.h5", flat.buffer, flat.layout, 2)
    with h5py.File(tmp_path / "model.h5") as file:
        assert file.attrs["version"] == 2


def test_a_model_that_cannot_be_written_leaves_the_one_before(tmp_path, flat):
    save_model(tmp_path / "model.h5", flat.buffer, flat.layout, 1)
    with pytest.raises(TypeError, match="no native HDF5 equivalent"):  # after the tensors have been written
        save_model(tmp_path / "model.h5", flat.buffer, flat.layout, object())
    with h5py.File(tmp_path / "model.h5") as file:
        assert file.attrs["version"] == 1


def test_a_large_tensor_is_saved_beside_small_ones(tmp_path):
    """Large ones do not pass through HDF5."""
    buffer = torch.from_numpy(noise(LAYOUT.size, 0))
    assert SMALL < 4 * 30000
    save_model(tmp_path / "model.h5", buffer, LAYOUT, 0)
    with h5py.File(tmp_path / "model.h5") as file:
        found = [file[entry.name][()] for entry in LAYOUT.entries]
    assert b"".join(array.tobytes() for array in found) == buffer.numpy().tobytes()
    assert [array.shape for array in found] == [entry.shape for entry in LAYOUT.entries]
