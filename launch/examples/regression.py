"""Regression: the progress of diabetes a year later, from ten measurements of 442 people; regression.toml is its run."""

from typing import ClassVar

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.nn import functional as F

from asyncfeded import Batch, Data, Metric, Settings, Sums

MEAN, DEVIATION = 152.0, 77.0
"""Of the target."""


class Diabetes(Settings):
    """People are dealt to the clients by age, so that the clients differ; every fifth is for testing."""

    metrics: ClassVar = {"mae": Metric("min", unit="points"), "loss": Metric("min")}
    hidden: int = 16
    """Units of the hidden layer."""

    def model(self) -> nn.Module:
        """One hidden layer."""
        return nn.Sequential(nn.Linear(10, self.hidden), nn.Tanh(), nn.Linear(self.hidden, 1), nn.Flatten(0))

    def sizes(self, num_clients: int, seed: int) -> np.ndarray:
        """How many people each client has."""
        return np.array([len(part) for part in self._parts(num_clients)])

    def client_data(self, client: int, num_clients: int, seed: int) -> Data:
        """The people of one client."""
        return people(self._parts(num_clients)[client])

    def test_data(self) -> Data:
        """Every fifth."""
        return people(np.arange(4, 442, 5))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error, in deviations."""
        inputs, targets = batch
        return F.mse_loss(model(inputs), targets)

    def score(self, model: nn.Module, batch: Batch) -> Sums:
        """Mean absolute error in the unit of the target, and the loss."""
        inputs, targets = batch
        wrong, count = model(inputs) - targets, len(targets)
        return {"mae": (DEVIATION * wrong.abs().sum(), count), "loss": (wrong.square().sum(), count)}

    def _parts(self, num_clients: int) -> list[np.ndarray]:
        train = np.flatnonzero(np.arange(442) % 5 != 4)
        age = load_diabetes().data[train, 0]
        return np.array_split(train[np.argsort(age, kind="stable")], num_clients)


def people(rows: np.ndarray) -> Data:
    """Measurements and targets of some people, scaled."""
    data, target = load_diabetes(return_X_y=True)
    inputs, targets = 21 * data[rows], (target[rows] - MEAN) / DEVIATION  # the measurements have deviation 1 / 21
    return Data(torch.tensor(inputs, dtype=torch.float32), torch.tensor(targets, dtype=torch.float32))
