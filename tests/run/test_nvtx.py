"""Ranges are there while nsys records, and leave no trace otherwise."""

import pytest
import torch

from asyncfeded.run.nvtx import RECORDING, mark


class Trainer:
    def round(self, number):
        if number < 0:
            raise ValueError("no such round")
        return 2 * number


@pytest.fixture
def said(monkeypatch):
    said = []
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", said.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: said.append("end"))
    for name in RECORDING:
        monkeypatch.delenv(name, raising=False)
    return said


@pytest.mark.parametrize("variable", RECORDING)
def test_a_range_lies_around_each_call_also_one_that_fails(said, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    trainer = Trainer()
    mark(trainer, round="train")
    assert trainer.round(3) == 6
    with pytest.raises(ValueError, match="no such round"):
        trainer.round(-1)
    assert said == ["train", "end"] * 2


def test_nothing_is_touched_where_nobody_records(said, monkeypatch):
    trainer = Trainer()
    mark(trainer, round="train")
    monkeypatch.setenv(RECORDING[0], "1")
    monkeypatch.setattr(torch.version, "cuda", None)
    mark(trainer, round="train")
    assert "round" not in vars(trainer)
