"""A client tests the model that it was sent on its own data, and trains from it as if it had not."""

import math
from itertools import count
from typing import ClassVar

import pytest
import torch
from torch import nn

from asyncfeded.config import Config, Settings
from asyncfeded.metric import Metric
from asyncfeded.model.flat import FlatModel
from asyncfeded.tasks.classification import Data
from asyncfeded.tasks.contract import CheckedTask, TaskError
from asyncfeded.training.held_out import HeldOut
from asyncfeded.wire.messages import NO_SCORES, Order


class Line(Settings):
    """Client c holds out the inputs c, c + 1, ... of as many samples as `samples`; y = w x, and y is to be 0."""

    metrics: ClassVar = {"error": Metric("min", finish=math.sqrt), "large": Metric("max")}
    samples: int = 3

    def model(self):
        return nn.Linear(1, 1, bias=False)

    def held_out(self, client, num_clients, seed):
        x = torch.arange(client, client + self.samples).float()[:, None]
        return Data(x, torch.zeros(len(x)))

    def score(self, model, batch):
        y = model(batch[0])
        return {"error": (y.square().sum(), len(y)), "large": ((y > 9).sum(), (y > 5).sum())}

    sizes = client_data = test_data = loss = model  # not asked for


def held_out(task=None, module=None, **evaluation):
    flat = FlatModel(module or nn.Linear(1, 1, bias=False))
    flat.buffer.fill_(2.0)
    config = Config(clients=4, limits={"updates": 1}, evaluation={"client_rounds": 3, "batch_size": 2} | evaluation)
    return HeldOut(CheckedTask(task or Line(), "line"), flat, config)


def never():
    return False


def test_the_metrics_are_those_worked_by_hand():
    """w = 2: y is 2, 4 and 6, and the root of 56 / 3; of the one above 5 none is above 9."""
    scores = held_out().scores(Order(1, 3, 8, 1), never)
    assert scores[:2] == (pytest.approx(math.sqrt(56 / 3)), 0.0)
    assert all(map(math.isnan, scores[2:]))
    assert len(scores) == len(NO_SCORES) == 8


def test_a_client_tests_in_every_so_many_th_of_its_rounds_from_the_first_on():
    tested = held_out()
    assert [number for number in range(8) if tested.scores(Order(1, number, 0, 1), never) is not NO_SCORES] == [0, 3, 6]


def test_a_metric_that_counts_nothing_at_a_client_has_no_value_there():
    """y is 0, 2 and 4: none is above 5."""
    assert math.isnan(held_out().scores(Order(0, 0, 0, 1), never)[1])


def test_a_stop_ends_a_test():
    asked = count()
    held_out(Line(samples=100)).scores(Order(0, 0, 0, 1), lambda: next(asked) == 4)
    assert next(asked) == 5


def test_a_test_draws_the_same_numbers_for_the_same_round_of_a_client():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x, 0.5, training=True))

    tested = held_out(module=Noisy(1, 1, bias=False))
    one, other, one_again = (tested.scores(Order(1, number, 0, 1), never)[0] for number in (0, 3, 0))
    assert one == one_again != other


def test_held_out_data_that_is_none_is_told_before_training():
    with pytest.raises(TaskError, match="task line, held_out of client 2: gave back no sample; every client needs one"):
        held_out(Line(samples=0)).try_out([2])


def test_a_model_that_a_test_changes_is_refused():
    class Counts(nn.Linear):
        def forward(self, x):
            self.weight.data += 1
            return super().forward(x)

    with pytest.raises(TaskError, match="task line: a test changes the model, which its client is then to train"):
        held_out(module=Counts(1, 1, bias=False)).try_out([0])
