"""FedAdam: FedAvg, and the server makes an Adam step of the mean of all updates."""

from typing import ClassVar, final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from asyncfeded.config import Settings
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules import barrier
from asyncfeded.rules.buffers import parts, zeros
from asyncfeded.rules.decision import Decision, Reply, State, Update


@final
class FedAdam(Settings):
    """FedAdam (Reddi 2021, arXiv 2003.00295, algorithm 2), with all clients in every round.

    Element by element:

        D       = sum_i (N_i / N) Delta_i
        m       <- beta1 m + (1 - beta1) D
        v       <- beta2 v + (1 - beta2) D^2                 (v = epsilon^2 at first, the least that the source allows)
        x_{t+1} = x_t + eta m / (sqrt(v) + epsilon)

    There is no bias correction, as in algorithm 2; the code that the authors publish takes Keras' Adam, which has one. The
    source weighs clients equally in its algorithm and by samples in its experiments; here by samples, as FedAvg does. Its
    epsilon is called tau. See FedAvg for N_i, order, the record's eta and statistics, which have no moments.
    State: that of FedAvg, and `m`, `v`, float32 (parameters,).
    """

    eta: float = Field(0.01, gt=0)
    """eta: the server's learning rate; about how far a step moves each parameter."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """beta1: decay of the first moment, per round. 0: none is kept."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """beta2: decay of the second moment, per round. 0: none is kept."""
    epsilon: float = Field(1e-3, gt=0)
    """epsilon (tau in the source): bounds the step of a parameter that hardly changes."""
    proximal: ClassVar[float] = 0.0

    def init(self, model: GlobalModel, epochs: np.ndarray) -> State:
        """See `Rule`."""
        n = model.layout.num_params
        return barrier.init(model, epochs) | {"m": zeros(model, n), "v": zeros(model, n).fill_(self.epsilon**2)}

    def on_arrival(self, update: Update, model: GlobalModel, state: State) -> Decision:
        """See `Rule`."""
        return barrier.on_arrival(update, model, state, self.move)

    def on_loss(self, client: int, model: GlobalModel, state: State) -> tuple[Reply, ...]:
        """See `Waits`."""
        return barrier.on_loss(client, model, state, self.move)

    def move(self, model: GlobalModel, mean: Tensor, state: State) -> None:
        """See `barrier.Move`."""
        m, v = state["m"], state["v"]
        for part in parts(model.layout.num_params):
            D = mean[part]
            m[part].mul_(self.beta1).add_(D, alpha=1 - self.beta1)
            v[part].mul_(self.beta2).addcmul_(D, D, value=1 - self.beta2)
            torch.div(m[part], v[part].sqrt().add_(self.epsilon), out=D)
        model.step(mean, self.eta)
