"""A checkpoint holds all of a run's state, to the bit."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from asyncfeded import rules
from asyncfeded.metric import Metric, Metrics
from asyncfeded.model.flat import Entry, FlatModel, Layout
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.store import checkpoint
from asyncfeded.store.checkpoint import Rows, read_checkpoint, save, save_model
from store.snapshots import CONFIG, LAYOUT, ONE, a_snapshot, idle, noise, numbered, put, the_same


def test_everything_comes_back_to_the_bit(tmp_path):
    there = a_snapshot()
    save(tmp_path / "it.h5", there)
    back = read_checkpoint(tmp_path / "it.h5")
    assert the_same(back, there)
    assert not the_same(back, replace(there, refused=there.refused + 1))


MANY = Layout(tuple(Entry(f"{i}", (2, 1), 2 * i) for i in range(300)), 600, 600)


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": ONE, "model": noise(1, 0), "bases": Rows(), "clients": idle()},
        {"layout": MANY, "model": noise(600, 0), "bases": Rows(), "clients": idle()},
        {"layout": replace(LAYOUT, num_params=LAYOUT.size)},
        {"bases": Rows(), "clients": idle()},
        {"bases": numbered({version: noise(LAYOUT.size, version) for version in range(20)}), "clients": idle()},
        {"rule": {}},
        {"rule": {"nothing": np.zeros((0, 3), np.float32), "one": np.array(3), "kept": np.array([True, False])}},
        {"clients": idle(5000)},
        {"score_version": -1, "score": np.full(2, np.nan)},
        {"config": CONFIG + "# " + 100_000 * "ü"},
        {"metrics": Metrics({"Größe": Metric("min", "µm")}, "Größe"), "score": np.array([3.0])},
    ],
    ids=[
        "one element",
        "order",
        "no statistics",
        "no bases",
        "bases",
        "no rule",
        "odd rule",
        "clients",
        "no score",
        "config",
        "metrics",
    ],
)
def test_states_of_other_kinds_come_back_to_the_bit(tmp_path, changes):
    there = a_snapshot(**changes)
    save(tmp_path / "it.h5", there)
    assert the_same(read_checkpoint(tmp_path / "it.h5"), there)


@pytest.mark.parametrize("name", rules.RULES)
@pytest.mark.parametrize("layout", [ONE, LAYOUT], ids=["one", "large"])
def test_the_state_of_every_rule_comes_back_to_the_bit(tmp_path, name, layout):
    model = GlobalModel(torch.from_numpy(noise(layout.size, 0)), layout, 3)
    state = {
        key: np.asarray(array) for key, array in rules.load_rule({"name": name}).init(model, np.array([2, 2, 2])).items()
    }
    for seed, array in enumerate(state.values()):
        array.view(np.uint8)[...] = np.random.default_rng(seed).integers(0, 256, array.view(np.uint8).shape)
    there = a_snapshot(layout=layout, model=model.x.numpy(), bases=Rows(), clients=idle(), rule=state)
    save(tmp_path / "it.h5", there)
    assert the_same(read_checkpoint(tmp_path / "it.h5"), there)


def test_the_same_state_gives_the_same_file(tmp_path):
    assert (
        save(tmp_path / "a.h5", a_snapshot()) == save(tmp_path / "b.h5", a_snapshot()) == (tmp_path / "a.h5").stat().st_size
    )
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_file_holds_no_objects(tmp_path):
    """Numbers, and texts of a fixed length: nothing that would be read with pickle."""
    save(tmp_path / "it.h5", a_snapshot())
    with h5py.File(tmp_path / "it.h5") as file:
        found = []
        file.visititems(lambda name, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
        attributes = dict(file.attrs)
        assert len(found) == 18
        assert not any(item.dtype.hasobject for item in found)
        assert {kind for item in found for kind in item.dtype.kind} <= set("iufbSV")
        assert not any(dict(item.attrs) for item in found)
    assert {type(value) for value in attributes.values()} == {str, np.int64, np.float64}


def test_a_module_takes_the_weights_as_the_docstring_says(tmp_path):
    torch.manual_seed(0)
    flat = FlatModel(nn.Sequential(nn.Linear(300, 100), nn.BatchNorm1d(100)))
    put(tmp_path, a_snapshot(layout=flat.layout, model=flat.buffer.numpy(), bases=Rows(), clients=idle()))
    module = nn.Sequential(nn.Linear(300, 100), nn.BatchNorm1d(100))
    lines = [line.strip() for line in checkpoint.__doc__.splitlines() if line.startswith("    ")][-3:]
    code = "\n".join(lines).replace("runs/mine", str(tmp_path))
    scope = {"h5py": h5py, "torch": torch, "module": module}
    exec(code, scope)
    scope["file"].close()
    expected = flat.module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())


def test_a_checkpoint_of_another_schema_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.snapshot, "SCHEMA", 5)
    save(tmp_path / "it.h5", a_snapshot())
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match=r"it\.h5: expected a checkpoint of schema 4, this has schema 5, written by asyncfeded "
    ):
        read_checkpoint(tmp_path / "it.h5")


def test_a_model_is_no_checkpoint(tmp_path):
    save_model(tmp_path / "model.h5", {"w": torch.zeros(1)}, 0)
    with pytest.raises(ValueError, match=r"model\.h5: is no checkpoint, but a trained model; give the folder of its run"):
        read_checkpoint(tmp_path / "model.h5")
