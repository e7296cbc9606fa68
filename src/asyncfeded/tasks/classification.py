"""What all tasks of classification share: the form of their data, the loss and the metric."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from asyncfeded.config import Settings


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
