"""What all tasks of classification share: the form of their data, how groups are dealt, the loss and the metric."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch.nn.functional as F
from torch import Tensor

from asyncfeded.config import Settings

T = TypeVar("T")


class Data(NamedTuple):
    """Samples: `inputs` (n, ...) as the model takes them, `targets` int64 (n,)."""

    inputs: Tensor
    targets: Tensor


class Classification(Settings):
    """A task whose model returns one score per class."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats; outputs (n, classes), targets (n,)."""
        return F.cross_entropy(outputs, targets)

    def evaluate(self, outputs: Tensor, targets: Tensor) -> tuple[float, int, int]:
        """Summed cross-entropy in nats, correct predictions, predictions."""
        loss = F.cross_entropy(outputs, targets, reduction="sum")
        return loss.item(), int((outputs.argmax(dim=1) == targets).sum().item()), targets.numel()


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
