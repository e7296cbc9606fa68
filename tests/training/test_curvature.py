"""What clients measure for a rule: by hand on a quadratic loss, and without a trace in what is trained."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from asyncfeded.config import Training
from asyncfeded.model.flat import FlatModel
from asyncfeded.tasks.classification import Data
from asyncfeded.training.batches import ClientData
from asyncfeded.training.client import Trainer
from asyncfeded.wire.messages import Order

ORDER = Order(client=3, round=2, version=7, epochs=2)


def trainer_of(module, loss, measures="curvature", training=None, **methods):
    task = SimpleNamespace(**{"name": "mine", "loss": loss, "optimizer": None, "factor": None, "step": None} | methods)
    return Trainer(task, FlatModel(module), training or Training(batch_size=4), 0.0, 5, measures=measures)


def a_round(trainer, order=ORDER):
    data = Data(torch.linspace(-1, 1, 36).reshape(12, 3).sin(), torch.arange(12) % 2)
    assert trainer.round(order, ClientData(data, 4), lambda: False)
    return trainer


class Bowl(nn.Module):
    """The loss is (1 a^2 + 10 b^2) / 2 whatever the batch; c is trained, and has no gradient."""

    def __init__(self, a, b):
        super().__init__()
        self.c, self.ab = nn.Parameter(torch.ones(2)), nn.Parameter(torch.tensor([a, b]))

    def forward(self, _):
        return (torch.tensor([1.0, 10.0]) * self.ab**2).sum() / 2


@pytest.mark.parametrize(
    ("a", "b", "curvature"),
    [
        (3.0, 0.0, 1.0),
        (0.0, 2.0, 10.0),
        (3.0, 4.0, (3**2 + 400**2) ** 0.5 / (3**2 + 40**2) ** 0.5),  # g = (3, 40), H g = (3, 400)
        (0.0, 0.0, float("nan")),  # no gradient
    ],
)
def test_the_curvature_of_a_bowl_along_its_gradient(a, b, curvature):
    done = a_round(trainer_of(Bowl(a, b), lambda model, batch: model(batch)))
    assert done.measured == pytest.approx(curvature, rel=1e-4, nan_ok=True)


def test_a_round_is_the_same_to_the_bit_whether_anything_is_measured():
    """With dropout, whose masks are those of the first gradient in both, and with the statistics of batch norm."""

    def module():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2))

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    training = Training(batch_size=4, accumulate=2, momentum=0.9)
    one, other = (a_round(trainer_of(module(), loss, measures, training)) for measures in ("curvature", ""))
    assert 0 < one.measured < 1e4
    assert other.measured != other.measured
    assert torch.equal(one._flat.buffer, other._flat.buffer)
    assert one.loss == other.loss


def test_a_gradient_that_overflows_gives_no_number():
    done = a_round(
        trainer_of(Bowl(1e30, 0.0), lambda model, batch: model(batch) * 1e10, training=Training(learning_rate=1e-40))
    )
    assert done.measured != done.measured


@pytest.mark.parametrize(
    ("methods", "training", "told"),
    [
        ({"step": lambda *_: None}, {}, "takes its steps itself, which a rule that measures the curvature would change"),
        ({"optimizer": lambda *_: None}, {}, "task mine makes its own, but the rule finds the learning rate of plain sgd"),
        ({}, {"optimizer": "adam"}, "training.optimizer = adam, but the rule finds .* set rule.rate = training"),
    ],
)
def test_an_optimizer_that_a_rate_from_curvature_does_not_fit_is_refused(methods, training, told):
    with pytest.raises(ValueError, match=told):
        trainer_of(Bowl(1.0, 1.0), lambda model, batch: model(batch), training=Training(**training), **methods)
