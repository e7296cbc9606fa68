"""`synthetic`: Synthetic(alpha, beta) of FedProx (Li et al. 2018, arXiv 1812.06127), drawn, not read.

The law. First the sample counts of all devices, n_k = floor(LogNormal(4, 2)) + 50; then all u_k ~ N(0, alpha); then all
B_k ~ N(0, beta), alpha and beta being standard deviations. Then for each device: v_k (60 numbers) ~ N(B_k, 1), W_k (60 x 10)
~ N(u_k, 1), b_k (10) ~ N(u_k, 1); samples x ~ N(v_k, Sigma), Sigma diagonal with j^-1.2 for j = 1 .. 60, of class
argmax(x W_k + b_k). Of a device's samples floor(0.9 n_k) are for training, the others for testing.

That is the law as published, and in it alpha is without effect: u_k moves the scores of all classes of a sample alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, final

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from asyncfeded.seeds import Stream, numpy_rng
from asyncfeded.tasks.classification import Classification, Data, deal

FEATURES = 60
CLASSES = 10
DEVICES = 30
"""Number of devices in the data that FedProx published."""


@dataclass(frozen=True, eq=False)  # arrays do not compare, and two tasks are equal if their keys are
class Devices:
    """What is drawn for all devices at once, each (devices,)."""

    counts: np.ndarray
    """n_k, int64, cut to `samples_max`."""
    u: np.ndarray
    """float64."""
    b: np.ndarray
    """B_k, float64."""


@final
class Synthetic(Classification):
    """Devices are dealt to the clients in turn: client i gets devices i, i + n, i + 2n, ...; usually one for each client.

    The data follows from `data_seed`, not from the seed of the run: all runs of a study are then about the same data, and
    the test data, which is everybody's, does not depend on who trains.
    """

    alpha: float = Field(1.0, ge=0, le=1e6)
    """Standard deviation of the u_k, the mean of a device's true weights; the law's classes do not depend on it."""
    beta: float = Field(1.0, ge=0, le=1e6)
    """Standard deviation of the B_k: how much the devices' inputs differ."""
    devices: int = Field(0, ge=0)
    """Number of devices. 0: as many as `sizes_given` has, or 30 where that is empty."""
    sizes_given: tuple[Annotated[int, Field(le=10**15)], ...] = ()
    """Samples of each device, training and test together, in place of drawn numbers. Empty: drawn."""
    samples_max: int = Field(0, ge=0, le=10**15)
    """Largest number of samples of a device; a larger one is cut to it (one in 100 is above 5,700). 0: no limit."""
    data_seed: int = Field(0, ge=0)
    """Seed of the data."""
    architecture: Literal["logistic", "mlp"] = Field("logistic", alias="model")
    """The model: `logistic` (regression, one linear layer) or `mlp` (one hidden layer)."""
    hidden: int = Field(64, ge=1)
    """Units of the hidden layer of `mlp`."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Synthetic":
        if self.sizes_given and min(self.sizes_given) < 2:
            raise ValueError(f"sizes_given holds {min(self.sizes_given)}, expected at least 2: one to train and one to test")
        if 0 < self.samples_max < 2:
            raise ValueError(f"samples_max = {self.samples_max}, expected at least 2: one to train and one to test")
        if self.sizes_given and self.devices not in (0, len(self.sizes_given)):
            raise ValueError(
                f"sizes_given has {len(self.sizes_given)} numbers, but devices = {self.devices}; leave devices out"
            )
        return self

    def model(self) -> nn.Module:
        """One linear layer, or two with a ReLU between them."""
        if self.architecture == "logistic":
            return nn.Linear(FEATURES, CLASSES)
        return nn.Sequential(nn.Linear(FEATURES, self.hidden), nn.ReLU(), nn.Linear(self.hidden, CLASSES))

    def sizes(self, num_clients: int, seed: int) -> np.ndarray:
        """See `Task`; draws no sample."""
        train = _num_train(self._devices.counts)
        return np.array([train[self._dealt(client, num_clients)].sum() for client in range(num_clients)], np.int64)

    def client_data(self, client: int, num_clients: int, seed: int) -> Data:
        """See `Task`; the seed of the run plays no part, and no other client's samples are drawn."""
        return _data([self._samples(device)[0] for device in self._dealt(client, num_clients)])

    def test_data(self) -> Data:
        """See `Task`: the tenth of all devices."""
        return _data([self._samples(device)[1] for device in range(len(self._devices.counts))])

    def held_out(self, client: int, num_clients: int, seed: int) -> Data:
        """See `HoldsOut`: the tenth of its devices."""
        return _data([self._samples(device)[1] for device in self._dealt(client, num_clients)])

    def _dealt(self, client: int, num_clients: int) -> Sequence[int]:
        num = len(self._devices.counts)
        return deal(range(num), client, num_clients, f"task synthetic has {num} devices (task.devices = {self.devices})")

    @cached_property
    def _devices(self) -> Devices:
        """All devices. Counts are drawn where they are given too, so that u and B stay."""
        num = len(self.sizes_given) or self.devices or DEVICES
        rng = numpy_rng(self.data_seed, Stream.SPLIT)
        counts = rng.lognormal(4.0, 2.0, num).astype(np.int64) + 50
        if self.sizes_given:
            counts = np.array(self.sizes_given, np.int64)
        if self.samples_max:
            counts = np.minimum(counts, self.samples_max)
        return Devices(counts, rng.normal(0.0, self.alpha, num), rng.normal(0.0, self.beta, num))

    def _samples(self, device: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Training and test samples of one device, each x float32 (n, 60) and y int64 (n,)."""
        drawn = self._devices
        counts, u, b = drawn.counts[device], drawn.u[device], drawn.b[device]
        rng = numpy_rng(self.data_seed, Stream.SPLIT, device)
        center = rng.normal(b, 1.0, FEATURES)
        weight = rng.normal(u, 1.0, (FEATURES, CLASSES))
        bias = rng.normal(u, 1.0, CLASSES)
        deviation = np.arange(1, FEATURES + 1) ** -0.6  # the root of j^-1.2
        x = center + deviation * rng.standard_normal((counts, FEATURES))
        y = (x @ weight + bias).argmax(axis=1)  # softmax keeps the order
        x = x.astype(np.float32)
        train = _num_train(counts)  # the samples are independent: the first are as good as shuffled ones
        return (x[:train], y[:train]), (x[train:].copy(), y[train:].copy())  # a view would keep them all


def _num_train(counts: np.ndarray) -> np.ndarray:
    """floor(0.9 n), in integers: 0.9 has no exact float."""
    return counts * 9 // 10


def _data(parts: list[tuple[np.ndarray, np.ndarray]]) -> Data:
    inputs, targets = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Data(torch.from_numpy(inputs), torch.from_numpy(targets))
