"""The accuracy of a snapshot, batch by batch."""

import pytest
import torch
from torch import nn

from asyncfeded.model.flat import FlatModel
from asyncfeded.tasks.classification import Classification, Data
from asyncfeded.training.evaluation import Evaluator, Score


class Signs(Classification):
    """Five numbers whose class is whether they are positive; the model's scores are (-w x, w x)."""

    def test_data(self):
        return Data(torch.tensor([[1.0], [2.0], [-1.0], [3.0], [-2.0]]), torch.tensor([1, 1, 0, 1, 1]))


class Scores(nn.Module):
    """(-w x, w x); noise in training mode, where an evaluation must not be."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        assert not self.training
        return torch.cat([-self.w * x, self.w * x], dim=1)


def evaluator(batch_size):
    return Evaluator(Signs(), FlatModel(Scores()), batch_size, seed=0)


def test_accuracy_and_loss_are_those_worked_by_hand():
    """w = 1: four of five right. The loss of x is log(1 + e^-2x), or of the last, taken wrongly, log(1 + e^4)."""
    score = evaluator(2).score(torch.ones(1), version=3)
    expected = torch.log1p(torch.exp(torch.tensor([-2.0, -4.0, -2.0, -6.0, 4.0]))).mean().item()
    assert score == (3, 0.8, pytest.approx(expected, rel=1e-6))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_batch_size_does_not_change_the_score(batch_size):
    whole = evaluator(5).score(torch.full((1,), 0.3), 1)
    assert evaluator(batch_size).score(torch.full((1,), 0.3), 1) == pytest.approx(whole, rel=1e-6)


def test_a_score_comes_with_the_last_batch():
    e = evaluator(2)
    e.start(torch.ones(1), version=9)
    assert [e.step(), e.step()] == [None, None]
    assert isinstance(e.step(), Score)


def test_it_runs_from_the_snapshot_to_the_last_batch():
    e = evaluator(3)
    assert not e.running
    e.start(torch.ones(1), 0)
    e.step()
    assert e.running
    e.step()
    assert not e.running


def test_a_snapshot_is_not_moved_by_the_model_that_it_was_taken_from():
    e, x = evaluator(2), torch.ones(1)
    e.start(x, 1)
    x.fill_(-1.0)
    e.step()
    e.step()
    assert e.step().accuracy == 0.8


def test_a_second_snapshot_starts_from_zero():
    e = evaluator(2)
    e.start(torch.ones(1), 1)
    e.step()
    assert e.score(-torch.ones(1), 2)[:2] == (2, pytest.approx(0.2))


def test_evaluation_leaves_no_gradient_and_no_change():
    flat = FlatModel(Scores())
    Evaluator(Signs(), flat, 2, seed=0).score(torch.ones(1), 0)
    assert flat.module.w.grad is None
    assert flat.buffer.item() == 1.0


def test_a_model_that_draws_random_numbers_when_it_is_tested_has_one_score():
    class Noisy(Scores):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x, 0.5))

    e, x = Evaluator(Signs(), FlatModel(Noisy()), 2, seed=0), torch.ones(1)
    assert e.score(x, 1) == e.score(x, 1)


def test_memory_is_that_of_the_snapshot():
    assert evaluator(2).num_bytes == 4
