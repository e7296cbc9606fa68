"""`tabular`: one column of a table, predicted from others: a number (regression) or a class (classification).

The table is a CSV file whose first line names the columns, or lies in HDF5 or a *.npz (files/tables.py).
"""

import itertools
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from asyncfeded.files.tables import Columns, read_columns
from asyncfeded.metric import Metric
from asyncfeded.seeds import Stream, numpy_rng
from asyncfeded.tasks.classification import Batch, Classification, Data, Sums
from asyncfeded.tasks.pixels import to_labels
from asyncfeded.tasks.splits import hold_back, remark_held_back, split_alike, split_by_group, split_even

ADVICE = "give the path of a CSV file, an HDF5 file or a *.npz as task.data=..."


class Moments(NamedTuple):
    """Mean and standard deviation of columns over the rows that are trained on; float64 (columns,).

    The deviation is 1 where it is 0 but for rounding.
    """

    mean: np.ndarray
    deviation: np.ndarray


@final
class Tabular(Classification):
    """A column of a table in CSV, HDF5 or *.npz is predicted from the others.

    Every rank reads the whole table once. The features are standardised: the mean of the rows that are trained on is
    subtracted, and the result divided by their standard deviation. So is the target of a regression, whose MAE is told in
    its own unit.
    """

    data: Path
    """CSV file, HDF5 file or *.npz."""
    table: str = ""
    """In HDF5 the array of a compound type, or the group with an array for each column. Empty: the file itself."""
    target: str = Field(min_length=1)
    """Column to predict."""
    features: tuple[str, ...] = ()
    """Columns to predict it from. Empty: all others but `group`."""
    group: str = ""
    """Column of whole numbers or texts, such as a hospital: all rows of a group go to one client; groups are dealt in turn.
    Empty: rows are shuffled and split into equal parts."""
    kind: Literal["regression", "classification"] = "regression"
    """Whether `target` is a number or a class, a whole number from 0 on."""
    classes: int = Field(0, ge=0)
    """Number of classes. 0: the largest label plus one."""
    test: Path | None = None
    """Another file, of the test part, with the same columns. Not given: `test_share` of the rows is held back."""
    test_share: float = Field(0.1, gt=0, lt=1)
    """Part of the rows that is held back for testing, drawn and always the same, where `test` is not given."""
    architecture: Literal["mlp", "linear"] = Field("mlp", alias="model")
    """The model: `mlp` or `linear` (one layer)."""
    hidden: int = Field(64, ge=1)
    """Units of each hidden layer of `mlp`."""
    layers: int = Field(2, ge=1)
    """Hidden layers of `mlp`."""

    @model_validator(mode="after")
    def _columns_differ(self) -> "Tabular":
        for name in (self.target, self.group):
            if name in self.features:
                raise ValueError(f"features holds {name!r}, which is the {'target' if name == self.target else 'group'}")
        if self.target == self.group:
            raise ValueError(f"target and group are both {self.target!r}; expected two columns")
        if len(set(self.features)) < len(self.features):
            raise ValueError("features names a column twice")
        return self

    @property
    def metrics(self) -> Mapping[str, Metric]:  # type: ignore[override]
        """Mean absolute error and loss, or those of any classification."""
        regression = {"mae": Metric("min"), "loss": Metric("min")}
        return regression if self.kind == "regression" else Classification.metrics

    def model(self) -> nn.Module:
        """One layer, or hidden layers with ReLU behind each; with what features and target were standardised with."""
        features, target = self._moments
        widths = [len(features.mean), *([self.hidden] * self.layers if self.architecture == "mlp" else [])]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        layers.append(nn.Linear(widths[-1], 1 if self.kind == "regression" else self._num_classes))
        return Standardised(nn.Sequential(*layers), features, target if self.kind == "regression" else None)

    def sizes(self, num_clients: int, seed: int) -> np.ndarray:
        """See `Task`."""
        return np.array([len(part) for part in self._parts(num_clients, seed)], np.int64)

    def client_data(self, client: int, num_clients: int, seed: int) -> Data:
        """See `Task`."""
        return self._take(self._train, self._parts(num_clients, seed)[client])

    def test_data(self) -> Data:
        """See `Task`."""
        return self._take(self._test, self._rows[1])

    def held_out(self, client: int, num_clients: int, seed: int) -> Data:
        """See `HoldsOut`: the rows held back that are of the client's groups, or its part of all of them."""
        if self.group and self.test:
            raise ValueError("task.test is for the server; leave it out, so that rows of each group are held back")
        rows = self._dealt_test(num_clients, seed)[client]
        if not len(rows):
            raise ValueError(f"client {client} has no rows to test on; raise task.test_share, or lower clients")
        return self._take(self._test, self._rows[1][rows])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error of the standardised target, or mean cross-entropy in nats."""
        if self.kind == "classification":
            return super().loss(model, batch)
        inputs, targets = batch
        return F.mse_loss(model(inputs).squeeze(1), targets)

    def score(self, model: nn.Module, batch: Batch) -> Sums:
        """MAE in the unit of the target and squared error of the standardised target, or accuracy and cross-entropy."""
        if self.kind == "classification":
            return super().score(model, batch)
        inputs, targets = batch
        errors, n = model(inputs).squeeze(1) - targets, len(targets)
        _, (_, deviation) = self._moments
        return {"mae": (errors.abs().sum() * float(deviation[0]), n), "loss": (errors.square().sum(), n)}

    def remarks(self) -> list[str]:
        """See `Remarks`."""
        return [] if self.test else [remark_held_back(self.data, self._rows, self.test_share, bool(self.group))]

    @cached_property
    def _parts(self) -> Callable[[int, int], list[np.ndarray]]:
        return lru_cache(maxsize=1)(self._deal)  # a rank asks for one client after the other

    @cached_property
    def _dealt_test(self) -> Callable[[int, int], list[np.ndarray]]:
        return lru_cache(maxsize=1)(self._deal_test)

    def _deal(self, num_clients: int, seed: int) -> list[np.ndarray]:
        """Rows of each client."""
        train, _ = self._rows
        if self.group:
            parts = split_by_group(self._train.groups[train], num_clients, f"{self.data}: {self.group}")
        else:
            parts = split_even(len(train), num_clients, numpy_rng(seed, Stream.SPLIT))
        return [train[rows] for rows in parts]

    def _deal_test(self, num_clients: int, seed: int) -> list[np.ndarray]:
        """Which of the rows to test on are each client's."""
        (_, test), groups = self._rows, self._train.groups
        if self.group:
            return split_alike(groups[test], [groups[rows] for rows in self._parts(num_clients, seed)])
        return np.array_split(np.arange(len(test)), num_clients)

    @cached_property
    def _train(self) -> Columns:
        """The table to train on, with the target as its first column."""
        columns = read_columns(self.data, self.table, self.target, self.features, self.group, ADVICE)
        if len(columns.names) == 1:
            raise ValueError(f"{self.data}: has no column to predict {self.target} from")
        return columns

    @cached_property
    def _test(self) -> Columns:
        if not self.test:
            return self._train
        target, *features = self._train.names
        return read_columns(self.test, self.table, target, features, "", ADVICE)

    @cached_property
    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows to train on, and of the test table those to test on."""
        count = len(self._train.values)
        if not self.test:
            return hold_back(count, self.test_share, str(self.data))
        return np.arange(count), np.arange(len(self._test.values))

    @cached_property
    def _moments(self) -> tuple[Moments, Moments]:
        """Those of the features, and those of the target."""
        values = self._train.values[self._rows[0]]
        mean, deviation = values.mean(axis=0), values.std(axis=0)
        deviation[deviation <= 1e-12 * np.abs(mean)] = 1.0  # a constant column, but for what its sum has rounded
        return Moments(mean[1:], deviation[1:]), Moments(mean[:1], deviation[:1])

    @cached_property
    def _num_classes(self) -> int:
        return self.classes or 1 + max(int(self._labels(table).max()) for table in (self._train, self._test))

    def _labels(self, table: Columns, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Classes of some rows, int64."""
        path = self.test if self.test and table is self._test else self.data
        return to_labels(table.values[rows, 0], self.classes, f"{path}: {self.target}")

    def _take(self, table: Columns, rows: np.ndarray) -> Data:
        """Some rows of a table, standardised."""
        features, target = self._moments
        inputs = ((table.values[rows, 1:] - features.mean) / features.deviation).astype(np.float32)
        if self.kind == "classification":
            targets = self._labels(table, rows)
        else:
            targets = ((table.values[rows, 0] - target.mean) / target.deviation).astype(np.float32)
        return Data(torch.from_numpy(inputs), torch.from_numpy(targets))


class Standardised(nn.Module):
    """Layers that work on standardised features, and the numbers that these were standardised with, as buffers.

    Args:
        layers: float32 (n, features) to (n, outputs).
        features: moments of the features.
        target: moments of the target of a regression; None: the outputs are scores of classes.
    """

    def __init__(self, layers: nn.Module, features: Moments, target: Moments | None) -> None:
        super().__init__()
        self.layers = layers
        self.mean: Tensor
        self.deviation: Tensor
        self.target_mean: Tensor | None
        self.target_deviation: Tensor | None
        for prefix, moments in (("", features), ("target_", target)):
            for name in Moments._fields:
                self.register_buffer(prefix + name, moments and torch.from_numpy(getattr(moments, name)).float())

    def forward(self, inputs: Tensor) -> Tensor:
        """Standardised features float32 (n, features) to the standardised target (n, 1), or to scores (n, classes)."""
        outputs: Tensor = self.layers(inputs)
        return outputs

    def predict(self, rows: Tensor) -> Tensor:
        """The same of features as they stand in a table; the target in its own unit, or scores (n, classes)."""
        outputs: Tensor = self((rows - self.mean) / self.deviation)
        if self.target_mean is None or self.target_deviation is None:
            return outputs
        return outputs * self.target_deviation + self.target_mean
