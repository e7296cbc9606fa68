"""The metrics of a snapshot, batch by batch."""

import math
from contextlib import nullcontext
from typing import ClassVar

import pytest
import torch
from torch import nn

from asyncfeded.metric import Metric
from asyncfeded.model.flat import FlatModel
from asyncfeded.tasks.classification import Classification, Data
from asyncfeded.tasks.contract import CheckedTask, TaskError
from asyncfeded.training.evaluation import Evaluator, Score


class Signs(Classification):
    """Five numbers whose class is whether they are positive; the model's scores are (-w x, w x)."""

    def test_data(self):
        return Data(torch.tensor([[1.0], [2.0], [-1.0], [3.0], [-2.0]]), torch.tensor([1, 1, 0, 1, 1]))

    def model(self):
        return Scores()

    sizes = client_data = model  # not asked for


class Scores(nn.Module):
    """(-w x, w x); noise in training mode, where an evaluation must not be."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        assert not self.training
        return torch.cat([-self.w * x, self.w * x], dim=1)


def evaluator(batch_size):
    return Evaluator(CheckedTask(Signs(), "signs"), FlatModel(Scores()), batch_size, seed=0)


def test_accuracy_and_loss_are_those_worked_by_hand():
    """w = 1: four of five right. The loss of x is log(1 + e^-2x), or of the last, taken wrongly, log(1 + e^4)."""
    score = evaluator(2).score(torch.ones(1), version=3)
    expected = torch.log1p(torch.exp(torch.tensor([-2.0, -4.0, -2.0, -6.0, 4.0]))).mean().item()
    assert score == (3, pytest.approx({"accuracy": 0.8, "loss": expected}, rel=1e-6))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_batch_size_does_not_change_the_score(batch_size):
    whole = evaluator(5).score(torch.full((1,), 0.3), 1).values
    assert evaluator(batch_size).score(torch.full((1,), 0.3), 1).values == pytest.approx(whole, rel=1e-6)


class Stream:
    """Samples that can only be iterated over."""

    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


@pytest.mark.parametrize("kind", [list, Stream])
@pytest.mark.parametrize("batch_size", [2, 5, 100])
def test_a_data_set_has_the_score_of_its_tensors(kind, batch_size):
    class Stored(Signs):
        def test_data(self):
            return kind(list(zip(*super().test_data(), strict=True)))

    e = Evaluator(CheckedTask(Stored(), "stored"), FlatModel(Scores()), batch_size, seed=0)
    e.try_out(refuse=True)
    for _ in range(2):
        assert e.score(torch.full((1,), 0.3), 1) == evaluator(batch_size).score(torch.full((1,), 0.3), 1)


def test_a_stream_of_no_samples_is_refused():
    class Empty(Signs):
        def test_data(self):
            return Stream([])

    e = Evaluator(CheckedTask(Empty(), "empty"), FlatModel(Scores()), 2, seed=0)
    with pytest.raises(TaskError, match="task empty, test_data: has no sample"):
        e.try_out(refuse=True)


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
    assert e.step().values["accuracy"] == 0.8


def test_a_second_snapshot_starts_from_zero():
    e = evaluator(2)
    e.start(torch.ones(1), 1)
    e.step()
    score = e.score(-torch.ones(1), 2)
    assert (score.version, score.values["accuracy"]) == (2, pytest.approx(0.2))


def test_evaluation_leaves_no_gradient_and_no_change():
    flat = FlatModel(Scores())
    Evaluator(CheckedTask(Signs(), "signs"), flat, 2, seed=0).score(torch.ones(1), 0)
    assert flat.module.w.grad is None
    assert flat.buffer.item() == 1.0


def test_a_model_that_draws_random_numbers_when_it_is_tested_has_one_score():
    class Noisy(Scores):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x, 0.5))

    e, x = Evaluator(CheckedTask(Signs(), "signs"), FlatModel(Noisy()), 2, seed=0), torch.ones(1)
    assert e.score(x, 1) == e.score(x, 1)


class Rare(Signs):
    """Recall: hits among the samples of class 0, of which the batches of two have none, one and none."""

    metrics: ClassVar = {"loss": Metric("min", finish=math.exp), "recall": Metric("max")}

    def score(self, model, batch):
        inputs, targets = batch
        outputs, zero = model(inputs), targets == 0
        loss = nn.functional.cross_entropy(outputs, targets, reduction="sum")
        return {"recall": ((outputs.argmax(1) == targets)[zero].sum(), zero.sum()), "loss": (loss, len(targets))}


def test_a_metric_may_count_nothing_in_a_batch_and_is_finished_over_all():
    """w = 0: exp(log 2), and every sample taken for class 0."""
    e = Evaluator(CheckedTask(Rare(), "rare"), FlatModel(Scores()), 2, seed=0)
    e.try_out(refuse=True)
    assert e.score(torch.zeros(1), 1) == (1, {"loss": pytest.approx(2.0), "recall": 1.0})


@pytest.mark.parametrize(
    ("finish", "data", "refuse", "said"),
    [
        (None, 1.0, True, "task odd, score: the count of recall is 0 over all test data"),
        (None, math.inf, True, "task odd, score: gives loss nan with the weights that the model begins with; mend"),
        (None, math.inf, False, ""),
        (lambda mean: 1 / 0, 0.0, True, "task odd, finish of the metric loss: raised ZeroDivisionError"),
    ],
)
def test_what_is_wrong_with_a_metric_is_found_in_the_trial(finish, data, refuse, said):
    class Odd(Rare):
        metrics: ClassVar = {"loss": Metric("min", finish=finish), "recall": Metric("max")}

        def test_data(self):
            return Data(torch.full((5, 1), data), torch.ones(5, dtype=torch.int64) * (data == 1.0))

    e = Evaluator(CheckedTask(Odd(), "odd"), FlatModel(Scores()), 2, seed=0)
    with pytest.raises(TaskError, match=said) if said else nullcontext():
        e.try_out(refuse)


def test_memory_is_that_of_the_snapshot():
    assert evaluator(2).num_bytes == 4
