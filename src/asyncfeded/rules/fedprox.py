"""FedProx: FedAvg with a proximal term in the clients' local loss."""

from typing import final

import numpy as np
from pydantic import Field

from asyncfeded.config import Settings
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules import barrier
from asyncfeded.rules.decision import Decision, Reply, State, Update


@final
class FedProx(Settings):
    """FedProx (Li 2020, arXiv 1812.06127), with all clients in every round.

        local loss + (mu / 2) ||w - x_s||^2
        x_{t+1} = x_t + sum_i (N_i / N) Delta_i,    N = sum_i N_i

    The server does the same as in FedAvg: see FedAvg for N_i, order, statistics and state.
    """

    mu: float = Field(1.0, ge=0)
    """mu: weight of the proximal term; the source tries 0.001, 0.01, 0.1, 0.5 and 1. 0: FedAvg."""

    @property
    def proximal(self) -> float:
        """See `Rule`."""
        return self.mu

    def init(self, model: GlobalModel, epochs: np.ndarray) -> State:
        """See `Rule`."""
        return barrier.init(model, epochs)

    def on_arrival(self, update: Update, model: GlobalModel, state: State) -> Decision:
        """See `Rule`."""
        return barrier.on_arrival(update, model, state)

    def on_loss(self, client: int, model: GlobalModel, state: State) -> tuple[Reply, ...]:
        """See `Waits`."""
        return barrier.on_loss(client, model, state)
