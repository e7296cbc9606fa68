"""What `asyncfeded.open` shows of a run, finished or not, and how it is loaded into a module."""

import pickle

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import asyncfeded
from asyncfeded.config import Config
from asyncfeded.store.checkpoint import save_model
from asyncfeded.store.record import Record, UpdateRow
from conftest import METRICS, places

CONFIG = Config(limits={"updates": 3}, task={"name": "synthetic"})
CLIENTS = np.array([(20, 1.0), (30, 4.0)], [("samples", np.int64), ("slowdown", np.float64)])


def update(version):
    values = dict.fromkeys(UpdateRow._fields, 1) | {"client": version % 2, "version": version, "gamma": 0.5 * version}
    return UpdateRow(**values)


@pytest.fixture
def book(tmp_path):
    """The record of a run that goes on, with one update."""
    (tmp_path / "config.toml").write_text(CONFIG.to_toml())
    with Record(tmp_path / "record.h5", CONFIG.to_toml(), places("a", "b"), CLIENTS, METRICS) as book:
        book.updates.append(update(1))
        book.write()
        yield book


def test_a_run_that_goes_on_is_read_anew(book, tmp_path):
    run = asyncfeded.open(tmp_path)
    assert run.config == CONFIG
    assert run.result is None
    assert run.updates["gamma"].tolist() == [0.5]
    assert run.updates is run.updates  # read once, while nothing has changed
    book.updates.append(update(2))
    book.evaluations.append((1.0, 2, 0.9, 0.1))
    book.client_evaluations.append((1.0, 2, 1, 3, 0.8, 0.2))
    book.write()
    assert run.updates["gamma"].tolist() == [0.5, 1.0]
    assert run.evaluations["accuracy"].tolist() == [0.9]
    assert run.client_evaluations["round"].tolist() == [3]
    assert {name: metric.best for name, metric in run.metrics.items()} == {"accuracy": "max", "loss": "min"}
    book.close()
    (tmp_path / "result.json").write_text('{"updates": 2}')
    assert len(run.updates) == 2
    assert run.result == {"updates": 2}
    assert run.clients["slowdown"].tolist() == [1.0, 4.0]


def test_a_record_that_is_open_elsewhere_in_the_process_is_read(book, tmp_path):
    book.close()
    with h5py.File(tmp_path / "record.h5") as file:
        assert len(asyncfeded.open(tmp_path).updates) == len(file["updates"])


def test_a_run_can_be_sent_to_another_process(book, tmp_path):
    run = pickle.loads(pickle.dumps(asyncfeded.open(tmp_path)))
    assert run.path == tmp_path
    assert len(run.updates) == 1


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"record.h5: no such file; give the folder of a run"):
        asyncfeded.open(tmp_path)


def test_a_table_becomes_a_frame(book, tmp_path):
    pandas = pytest.importorskip("pandas", reason="needs pandas: pip install '.[frames]'")
    run = asyncfeded.open(tmp_path)
    frame = run.frame("updates")
    assert list(frame.columns) == list(UpdateRow._fields)
    assert frame.groupby("client").gamma.mean().to_dict() == {1: 0.5}
    pandas.testing.assert_series_equal(run.frame("clients").samples, pandas.Series([20, 30], name="samples"))
    with pytest.raises(ValueError, match="table 'update': expected one of: updates, evaluations, client"):
        run.frame("update")


class TestLoadInto:
    def module(self, value):
        module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        for tensor in module.state_dict().values():
            tensor.fill_(value)
        return module

    def test_it_holds_what_the_run_has_saved(self, book, tmp_path):
        save_model(tmp_path / "model.h5", self.module(3).state_dict(), 3)
        module = self.module(0)
        asyncfeded.open(tmp_path).load_into(module)
        assert all((tensor == 3).all() for tensor in module.state_dict().values())
        assert module[1].num_batches_tracked.dtype == torch.int64

    def test_another_module_is_refused(self, book, tmp_path):
        save_model(tmp_path / "model.h5", self.module(3).state_dict(), 3)
        with pytest.raises(RuntimeError, match=r"Missing key\(s\).*bias"):
            asyncfeded.open(tmp_path).load_into(nn.Linear(2, 3))

    def test_there_is_none_before_the_end(self, book, tmp_path):
        with pytest.raises(ValueError, match=r"has no model.h5; give .* the folder of a run that has ended"):
            asyncfeded.open(tmp_path).load_into(nn.Linear(2, 3))
