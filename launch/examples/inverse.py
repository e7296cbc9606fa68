"""A rule of one's own: the older an update, the shorter its step; inverse.toml is its run."""

from typing import ClassVar

import numpy as np
from pydantic import Field

from asyncfeded import Decision, GlobalModel, Reply, Settings, State, Update


class Inverse(Settings):
    """x_{t+1} = x_t + eta / (1 + tau) (w - x_s), where tau is how many versions the update is behind."""

    eta: float = Field(0.8, gt=0)
    """Step size of a fresh update."""
    proximal: ClassVar[float] = 0.0

    def init(self, model: GlobalModel, epochs: np.ndarray) -> State:
        """Every client keeps its first K."""
        return {"K": epochs.copy()}

    def on_arrival(self, update: Update, model: GlobalModel, state: State) -> Decision:
        """Merge the update, and reply to its client at once."""
        eta = self.eta / (1 + update.tau)
        model.merge(update.client, update.weights, eta)
        return Decision(update.gamma, eta, (Reply(update.client, int(state["K"][update.client])),))
