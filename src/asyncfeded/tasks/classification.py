"""What tasks share: the forms of their data, how groups are dealt, and the loss and the metrics of classification."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from asyncfeded.config import Settings
from asyncfeded.metric import FRACTION, Metric

T = TypeVar("T")


class Data(NamedTuple):
    """Samples: `inputs` (n, ...) as the model takes them, `targets` int64 (n,)."""

    inputs: Tensor
    targets: Tensor


Samples: TypeAlias = Data | Dataset[Any] | Iterable[Any]
"""Tensors, the fastest; or anything with `len(samples)` and `samples[i]`, which is read when a batch needs it; or anything
that can be iterated over, again and again from the first sample on."""

Batch: TypeAlias = Any
"""A batch as the task's data gives it: of `Data` the pair (inputs, targets) of some rows, of other samples what `collate` or
torch's default_collate makes of some."""

Sums: TypeAlias = Mapping[str, tuple[float | Tensor, float | Tensor]]
"""For each metric of a batch its sum, and the count that the sum is over."""


class Classification(Settings):
    """A task whose model returns one score per class for the inputs of a batch (inputs, targets)."""

    metrics: ClassVar[Mapping[str, Metric]] = {"accuracy": Metric("max", FRACTION), "loss": Metric("min", "nats")}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats; the model returns (n, classes), targets are (n,)."""
        inputs, targets = batch
        return F.cross_entropy(model(inputs), targets)

    def score(self, model: nn.Module, batch: Batch) -> Sums:
        """Correct predictions, and cross-entropy in nats."""
        inputs, targets = batch
        outputs, count = model(inputs), targets.numel()
        loss = F.cross_entropy(outputs, targets, reduction="sum")
        return {"accuracy": ((outputs.argmax(dim=1) == targets).sum(), count), "loss": (loss, count)}


def is_stream(samples: object) -> bool:
    """Whether samples can only be iterated over: `len(samples)` and `samples[i]` are not both there."""
    return isinstance(samples, IterableDataset) or not (hasattr(samples, "__len__") and hasattr(samples, "__getitem__"))


def deal(groups: Sequence[T], client: int, num_clients: int, having: str) -> Sequence[T]:
    """A client's groups of samples that belong together, dealt to the clients in turn: client i gets i, i + n, i + 2n, ...

    It takes the time of these groups, not of all: ranks ask for one client after the other.

    Args:
        groups: writers, roles or devices, in order.
        client: i.
        num_clients: n.
        having: what there is, for the message, such as `a.h5 has 5 writers`.

    Raises:
        ValueError: there are fewer groups than clients.
    """
    if len(groups) < num_clients:
        raise ValueError(f"{having}, too few for {num_clients} clients; lower clients to {len(groups)} or less")
    return groups[client::num_clients]
