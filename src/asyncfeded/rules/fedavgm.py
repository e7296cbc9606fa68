"""FedAvgM: FedAvg, and the server adds momentum to the mean of all updates."""

from typing import ClassVar, final

import numpy as np
from pydantic import Field
from torch import Tensor

from asyncfeded.config import Settings
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules import barrier
from asyncfeded.rules.buffers import zeros
from asyncfeded.rules.decision import Decision, Reply, State, Update


@final
class FedAvgM(Settings):
    """FedAvgM (Hsu 2019, arXiv 1909.06335), with all clients in every round.

        D       = sum_i (N_i / N) Delta_i
        v       <- beta v + D
        x_{t+1} = x_t + eta_g v

    The source has the opposite sign in D and subtracts v. A decay of 1 - beta, as some ports have it, is not there: a
    constant D moves the model by D / (1 - beta) in the end. See FedAvg for N_i, order, the record's eta and statistics,
    which have no momentum.
    State: that of FedAvg, and `v`, float32 (size,), zeros behind the parameters.
    """

    eta_g: float = Field(1.0, gt=0)
    """eta_g: the server's learning rate."""
    beta: float = Field(0.9, ge=0, lt=1)
    """beta: decay of the momentum, per round. 0: FedAvg with a step eta_g."""
    proximal: ClassVar[float] = 0.0

    def init(self, model: GlobalModel, epochs: np.ndarray) -> State:
        """See `Rule`."""
        return barrier.init(model, epochs) | {"v": zeros(model, model.layout.size)}

    def on_arrival(self, update: Update, model: GlobalModel, state: State) -> Decision:
        """See `Rule`."""
        return barrier.on_arrival(update, model, state, self.move)

    def on_loss(self, client: int, model: GlobalModel, state: State) -> tuple[Reply, ...]:
        """See `Waits`."""
        return barrier.on_loss(client, model, state, self.move)

    def move(self, model: GlobalModel, mean: Tensor, state: State) -> None:
        """See `barrier.Move`."""
        state["v"].mul_(self.beta).add_(mean)
        model.step(state["v"], self.eta_g)
