"""Delayed Nesterov: momentum enters only with every n-th update; clients train in proportion to their speed."""

from typing import ClassVar, final

import numpy as np
from pydantic import Field, model_validator

from asyncfeded.config import Count, Settings
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules.buffers import add_delta, zeros
from asyncfeded.rules.decision import Decision, Reply, State, Update
from asyncfeded.rules.local_epochs import by_speed, check_bounds, check_first


@final
class DelayedNesterov(Settings):
    """Delayed Nesterov with dynamic local updates (Liu 2024, arXiv 2401.09135).

        buf     <- buf + Delta
        x_{t+1} = x_t + eta Delta / n
                  + eta beta m,    m <- beta m + buf / n,    buf <- 0,    with every n-th update only
        K_i     <- E[first K_i v_i / mean_j v_j],    v_i = epochs that client i has done so far

    n is the number of clients. v_i is the measured speed: all clients have had the same time. It counts epochs and not
    arrivals, since with K in proportion to speed all clients arrive equally often. Until all have arrived once, K stays.
    E rounds to the nearest integer; bounds of K hold. eta in the record is eta / n, without the momentum.
    Statistics are averaged with weight eta / n, at most 1 (`GlobalModel.merge`), and have no momentum.
    State: `K` and `first_K`, int64 (clients,). `epochs_done`, int64 (clients,), v. `count`, int64 (1,), updates in buf.
    `buf` and `m`, float32 (parameters,).
    """

    eta: float = Field(0.7, gt=0)
    """eta: the server's learning rate."""
    beta: float = Field(0.9, ge=0, lt=1)
    """beta: decay of the momentum, per n updates. 0: no momentum."""
    epochs_min: Count = 1
    """Lower bound of K. The same as epochs_max: K never changes."""
    epochs_max: Count = 10
    """Upper bound of K."""
    proximal: ClassVar[float] = 0.0

    @model_validator(mode="after")
    def _bounds(self) -> "DelayedNesterov":
        check_bounds(self.epochs_min, self.epochs_max)
        return self

    def init(self, model: GlobalModel, epochs: np.ndarray) -> State:
        """See `Rule`."""
        check_first(epochs, self.epochs_min, self.epochs_max)
        return {
            "K": epochs.copy(),
            "first_K": epochs.copy(),
            "epochs_done": np.zeros(len(epochs), np.int64),
            "count": np.zeros(1, np.int64),
            "buf": zeros(model, model.layout.num_params),
            "m": zeros(model, model.layout.num_params),
        }

    def on_arrival(self, update: Update, model: GlobalModel, state: State) -> Decision:
        """See `Rule`."""
        n, client, clients = model.layout.num_params, update.client, len(model.base)
        buf, m, count = state["buf"], state["m"], state["count"]
        add_delta(buf, update.weights[:n], model.base[client][:n], 1.0)
        count += 1
        if count[0] == clients:
            m.mul_(self.beta).add_(buf, alpha=1.0 / clients)
            model.x[:n].add_(m, alpha=self.eta * self.beta)  # before the merge: that makes x the client's base
            buf.zero_()
            count[0] = 0
        model.merge(client, update.weights, self.eta / clients)
        state["epochs_done"][client] += update.epochs
        return Decision(update.gamma, self.eta / clients, (Reply(client, self.next_epochs(client, state)),))

    def next_epochs(self, client: int, state: State) -> int:
        """K of a client that has arrived, by its speed."""
        done = state["epochs_done"]
        if done.all():
            K = by_speed(state["first_K"], done, client)
            state["K"][client] = min(max(K, self.epochs_min), self.epochs_max)
        return int(state["K"][client])
