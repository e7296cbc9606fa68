"""Ringmaster ASGD: asynchronous steps of one size; an update that is too stale is thrown away."""

from typing import ClassVar, final

import numpy as np
from pydantic import Field

from asyncfeded.config import Settings
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules.decision import Decision, Reply, State, Update


@final
class Ringmaster(Settings):
    """Ringmaster ASGD (Maranjyan 2025, ICML, arXiv 2501.16168, algorithm 4, without calculation stops).

        x_{t+1} = x_t + eta Delta    if tau < R
        x_t stays                    otherwise

    The client is replied to at once in both cases. tau counts steps of the model only: an update that is thrown away makes
    nobody staler. The source takes gradients; here Delta, the sum of a client's local steps, stands for them. Its step is of
    the order of 1 / R of that of gradient descent, and so is the default. Algorithm 5 stops a client's work as soon as it is
    too stale; no message here can.
    Statistics are averaged with weight eta, at most 1 (`GlobalModel.merge`); those of an update that is thrown away are not.
    State: `K`, int64 (clients,), as first given.
    """

    R: int = Field(0, ge=0)
    """R: staleness in versions from which an update is thrown away. 1: only fresh ones are taken. 0: number of clients."""
    eta: float = Field(0.0, ge=0)
    """eta: step size. 0: 1 / R."""
    proximal: ClassVar[float] = 0.0

    def init(self, model: GlobalModel, epochs: np.ndarray) -> State:
        """See `Rule`."""
        return {"K": epochs.copy()}

    def on_arrival(self, update: Update, model: GlobalModel, state: State) -> Decision:
        """See `Rule`."""
        R, eta = self.R or len(model.base), 0.0
        if update.tau < R:
            eta = self.eta or 1.0 / R
            model.merge(update.client, update.weights, eta)
        return Decision(update.gamma, eta, (Reply(update.client, int(state["K"][update.client])),))
