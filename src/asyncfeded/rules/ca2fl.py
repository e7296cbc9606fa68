"""CA2FL: FedBuff, calibrated by the last update of every client."""

from typing import ClassVar, final

import numpy as np
from pydantic import Field

from asyncfeded.config import Settings
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules.buffers import gather_statistics, parts, take_statistics, zeros
from asyncfeded.rules.decision import Decision, Reply, State, Update


@final
class Ca2fl(Settings):
    """CA2FL (Wang, ICLR 2024), cached update calibration.

        acc     <- acc + Delta - h_i,    h_i <- Delta                     (h_i: the last Delta of client i, 0 at first)
        x_{t+1} = x_t + eta_g (h_bar + acc / M),    after M arrivals
        h_bar   <- mean_i h_i,    acc <- 0

    h_bar, the mean at the last step, is not stored: acc is how far the sum of the h_i has gone since, so it is
    mean_i h_i - acc / n. Taken from the h_i at every step, no rounding piles up in it. That reads n vectors per M arrivals.
    Clients are replied to at once. A version is a step. eta in the record is 0 for an update that only enters acc, and
    eta_g / M for the M-th.
    Statistics are not calibrated: they move by eta_g, at most 1, towards their mean over the M arrivals.
    State: `K`, int64 (clients,), as first given. `count`, int64 (1,), updates in acc. `acc`, float32 (size,). `h`, float32
    (clients, parameters).
    """

    M: int = Field(10, ge=1)
    """M: updates per step of the global model."""
    eta_g: float = Field(1.0, gt=0)
    """eta_g: the server's learning rate."""
    proximal: ClassVar[float] = 0.0

    def init(self, model: GlobalModel, epochs: np.ndarray) -> State:
        """See `Rule`."""
        return {
            "K": epochs.copy(),
            "count": np.zeros(1, np.int64),
            "acc": zeros(model, model.layout.size),
            "h": zeros(model, len(model.base), model.layout.num_params),
        }

    def on_arrival(self, update: Update, model: GlobalModel, state: State) -> Decision:
        """See `Rule`."""
        n, client, w, base = model.layout.num_params, update.client, update.weights, model.base[update.client]
        acc, h, count = state["acc"], state["h"], state["count"]
        count += 1
        for part in parts(n):
            delta = w[part] - base[part]
            acc[part].add_(delta).sub_(h[client, part])
            h[client, part].copy_(delta)
        gather_statistics(acc, w, n, 1.0 / int(count[0]))
        eta = 0.0
        if count[0] >= self.M:
            for part in parts(n):
                acc[part].mul_(1.0 / self.M - 1.0 / len(h)).add_(h[:, part].mean(0))  # h_bar + acc / M
            take_statistics(model, acc, self.eta_g)
            model.step(acc, self.eta_g)
            acc.zero_()
            count[0] = 0
            eta = self.eta_g / self.M
        return Decision(update.gamma, eta, (Reply(client, int(state["K"][client])),))
