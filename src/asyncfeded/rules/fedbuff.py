"""FedBuff: updates are gathered in a buffer, and the global model takes one step for every M of them."""

from typing import ClassVar, final

import numpy as np
from pydantic import Field

from asyncfeded.config import Settings
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules.buffers import add_delta, gather_statistics, take_statistics, zeros
from asyncfeded.rules.decision import Decision, Reply, State, Update


@final
class FedBuff(Settings):
    """FedBuff (Nguyen 2022, arXiv 2106.06639), without its differential privacy.

        B       <- B + s(tau) Delta,    s(tau) = (1 + tau)^-p
        x_{t+1} = x_t + eta_g B / M,    B <- 0,    after M arrivals

    Clients are replied to at once, until the step with the model that they know. A version is a step. eta in the record is 0
    for an update that only enters B, and eta_g s / M for the M-th.
    Statistics move by eta_g times the mean of s, at most 1, towards their mean over the buffer weighted with s.
    State: `K`, int64 (clients,), as first given. `count`, int64 (1,), updates in B. `weight`, float64 (1,), sum of their s.
    `B`, float32 (size,).
    """

    M: int = Field(10, ge=1)
    """M: updates per step of the global model. 1: every update is a step."""
    eta_g: float = Field(1.0, gt=0)
    """eta_g: the server's learning rate."""
    p: float = Field(0.5, ge=0)
    """p: exponent of the staleness weight (1 + tau)^-p. 0: all updates weigh 1."""
    proximal: ClassVar[float] = 0.0

    def init(self, model: GlobalModel, epochs: np.ndarray) -> State:
        """See `Rule`."""
        return {
            "K": epochs.copy(),
            "count": np.zeros(1, np.int64),
            "weight": np.zeros(1, np.float64),
            "B": zeros(model, model.layout.size),
        }

    def on_arrival(self, update: Update, model: GlobalModel, state: State) -> Decision:
        """See `Rule`."""
        n, client, w = model.layout.num_params, update.client, update.weights
        B, count, weight = state["B"], state["count"], state["weight"]
        s = float((1 + update.tau) ** -self.p)
        count += 1
        weight += s
        add_delta(B[:n], w[:n], model.base[client][:n], s)
        gather_statistics(B, w, n, s / float(weight[0]))
        eta = 0.0
        if count[0] >= self.M:
            take_statistics(model, B, self.eta_g * float(weight[0]) / self.M)
            model.step(B, self.eta_g / self.M)
            B.zero_()
            count[0], weight[0] = 0, 0
            eta = self.eta_g * s / self.M
        return Decision(update.gamma, eta, (Reply(client, int(state["K"][client])),))
