"""AREA: the global model is the mean of the latest models of all clients, however often each client arrives."""

from typing import ClassVar, final

import numpy as np
import torch
from pydantic import Field

from asyncfeded.config import Settings
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules.buffers import add_delta, zeros
from asyncfeded.rules.decision import Decision, Reply, State, Update


@final
class Area(Settings):
    """AREA (arXiv 2405.10123), asynchronous exact averaging.

        acc     <- acc + (w_i - y_i) / n,    y_i <- w_i       (y_i: the last result of client i, x_0 at first)
        x_{t+1} = x_t + acc,    acc <- 0,    after M arrivals

    In the source the client keeps y_i and sends w_i - y_i; here it sends w_i as for any rule, and the server keeps y_i.
    After every step x is mean_i y_i. Clients are replied to at once. A version is a step. eta in the record is 1 / n for the
    M-th update and 0 for the others. Statistics are those of mean_i y_i.
    State: `K`, int64 (clients,), as first given. `count`, int64 (1,), updates in acc. `acc`, float32 (size,), zeros behind
    the parameters. `y`, float32 (clients, size).
    """

    M: int = Field(1, ge=1)
    """M: updates per step of the global model."""
    proximal: ClassVar[float] = 0.0

    def init(self, model: GlobalModel, epochs: np.ndarray) -> State:
        """See `Rule`."""
        return {
            "K": epochs.copy(),
            "count": np.zeros(1, np.int64),
            "acc": zeros(model, model.layout.size),
            "y": model.x.repeat(len(model.base), 1),
        }

    def on_arrival(self, update: Update, model: GlobalModel, state: State) -> Decision:
        """See `Rule`."""
        n, client, w = model.layout.num_params, update.client, update.weights
        acc, y, count = state["acc"], state["y"], state["count"]
        count += 1
        add_delta(acc[:n], w[:n], y[client, :n], 1.0 / len(y))
        y[client].copy_(w)
        eta = 0.0
        if count[0] >= self.M:
            torch.mean(y[:, n:], 0, out=model.x[n:])
            model.step(acc, 1.0)
            acc.zero_()
            count[0] = 0
            eta = 1.0 / len(y)
        return Decision(update.gamma, eta, (Reply(client, int(state["K"][client])),))
