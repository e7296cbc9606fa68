"""FedAsync: the global model is mixed with each client's model; a staler model gets less weight."""

from typing import Literal, final

import numpy as np
from pydantic import Field

from asyncfeded.config import Settings
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules.decision import Decision, Reply, State, Update


@final
class FedAsync(Settings):
    """FedAsync (Xie 2019, arXiv 1903.03934).

        a       = alpha s(tau)
        x_{t+1} = (1 - a) x_t + a w
        s(tau)  = 1                                             constant
                  1 if tau <= b, else 1 / (c (tau - b) + 1)     hinge
                  (tau + 1)^-p                                  polynomial

    The local loss has (rho / 2) ||w - x_s||^2 added. eta in the record is a. Statistics are mixed as parameters are.
    State: `K`, int64 (clients,), as first given.
    """

    alpha: float = Field(0.6, gt=0, le=1)
    """alpha: weight of a fresh model. It is a constant: staleness is counted anew for every update."""
    staleness: Literal["constant", "hinge", "polynomial"] = "constant"
    """s: how the weight falls with tau."""
    b: int = Field(4, ge=0)
    """b of the hinge: up to this staleness, in versions, the weight is alpha."""
    c: float = Field(10.0, ge=0)
    """c of the hinge: how fast the weight falls beyond b, per version. 0: it does not."""
    p: float = Field(0.5, ge=0)
    """p of the polynomial: its exponent. 0: the weight does not fall."""
    rho: float = Field(0.005, ge=0)
    """rho: weight of the proximal term in the clients' local loss. 0: none."""

    @property
    def proximal(self) -> float:
        """See `Rule`."""
        return self.rho

    def init(self, model: GlobalModel, epochs: np.ndarray) -> State:
        """See `Rule`."""
        return {"K": epochs.copy()}

    def on_arrival(self, update: Update, model: GlobalModel, state: State) -> Decision:
        """See `Rule`."""
        a = self.alpha * self.s(update.tau)
        model.mix(update.weights, a)
        return Decision(update.gamma, a, (Reply(update.client, int(state["K"][update.client])),))

    def s(self, tau: int) -> float:
        """The weight that staleness leaves, 1 for a fresh update."""
        if self.staleness == "hinge":
            return 1.0 if tau <= self.b else 1.0 / (self.c * (tau - self.b) + 1.0)
        if self.staleness == "polynomial":
            return float((tau + 1) ** -self.p)
        return 1.0
