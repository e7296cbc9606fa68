"""ACE: every arrival makes a step by the mean of the latest updates of all clients."""

from typing import ClassVar, final

import numpy as np
import torch
from pydantic import Field

from asyncfeded.config import Settings
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules.buffers import parts, zeros
from asyncfeded.rules.decision import Decision, Reply, State, Update


@final
class Ace(Settings):
    """ACE (arXiv 2511.19066), all clients engaged in every step.

        g_i     <- Delta                                  (g_i: the last Delta of client i, 0 at first)
        x_{t+1} = x_t + eta_g g_bar,    g_bar = mean_i g_i

    g_bar is a running mean; each arrival replaces one vector in it. Every n-th step computes it again from the g_i, since
    rounding errors of early, large updates would stay in it to the end. A Delta enters about n steps before it is replaced,
    so with eta_g = 1 / n these steps go as far as a round of FedAvg.
    eta in the record is eta_g / n. Statistics are averaged with weight 1 / n.
    State: `K`, int64 (clients,), as first given. `g_bar`, float32 (size,), zeros behind the parameters. `g`, float32
    (clients, parameters).
    """

    eta_g: float = Field(0.0, ge=0)
    """eta_g: the server's learning rate. 0: one over the number of clients."""
    proximal: ClassVar[float] = 0.0

    def init(self, model: GlobalModel, epochs: np.ndarray) -> State:
        """See `Rule`."""
        return {
            "K": epochs.copy(),
            "g_bar": zeros(model, model.layout.size),
            "g": zeros(model, len(model.base), model.layout.num_params),
        }

    def on_arrival(self, update: Update, model: GlobalModel, state: State) -> Decision:
        """See `Rule`."""
        n, client, w, base = model.layout.num_params, update.client, update.weights, model.base[update.client]
        g_bar, g = state["g_bar"], state["g"]
        clients = len(g)
        anew = (model.version + 1) % clients == 0
        for part in parts(n):
            delta = w[part] - base[part]
            if not anew:
                g_bar[part].add_(delta - g[client, part], alpha=1.0 / clients)
            g[client, part].copy_(delta)
            if anew:
                torch.mean(g[:, part], 0, out=g_bar[part])
        model.x[n:].lerp_(w[n:], 1.0 / clients)
        eta_g = self.eta_g or 1.0 / clients
        model.step(g_bar, eta_g)
        return Decision(update.gamma, eta_g / clients, (Reply(client, int(state["K"][client])),))
