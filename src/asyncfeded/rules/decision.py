"""What goes into a rule and what comes out of it."""

from typing import NamedTuple

import numpy as np
from torch import Tensor

State = dict[str, np.ndarray]
"""All that a rule remembers, by name; written in place."""


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


class Reply(NamedTuple):
    """The global model of now goes to this client, to be trained for K epochs."""

    client: int
    epochs: int


class Decision(NamedTuple):
    """What a rule did with an update."""

    gamma: float
    """Staleness as the rule measures it."""
    eta: float
    """Step size that it took."""
    replies: tuple[Reply, ...]
