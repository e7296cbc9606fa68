"""The inputs and outputs of a rule."""

import math
from typing import Any, NamedTuple

from torch import Tensor

State = dict[str, Any]
"""All that a rule remembers, by name; written in place. Vectors of model size are tensors where the model is, all else numpy
arrays."""


class Update(NamedTuple):
    """A client's update, measured."""

    client: int
    tau: int
    """Staleness in versions, t - s."""
    epochs: int
    """K, the local epochs done."""
    samples: int
    """Samples seen in these epochs."""
    moved: float
    """||x_t - x_s||_2, how far the global model has moved since the client was sent x_s; finite."""
    change: float
    """||Delta||_2 = ||w - x_s||_2, how far the client has trained; finite."""
    weights: Tensor
    """float32 (size,), w; valid during the call."""
    measured: float = math.nan
    """What the rule asks its clients to measure (`Measures`), on the base x_s; NaN: nothing, or no number came of it."""

    @property
    def gamma(self) -> float:
        """||x_t - x_s|| / ||Delta||, the staleness of arXiv 2205.13797.

        0 if the global model has not moved, however small the update; infinite if it has and the client has not.
        """
        if self.moved == 0:
            return 0.0
        return self.moved / self.change if self.change > 0 else math.inf


class Reply(NamedTuple):
    """The current global model goes to this client, which trains it for K epochs."""

    client: int
    epochs: int
    learning_rate: float = 0.0
    """Of the client's optimizer in this round, before the schedule. 0: training.learning_rate."""


class Decision(NamedTuple):
    """What a rule did with an update."""

    gamma: float
    """Staleness: `Update.gamma`, unless the rule measures another."""
    eta: float
    """Weight with which this Delta entered the global model now; 0 where it was only kept for later."""
    replies: tuple[Reply, ...]
