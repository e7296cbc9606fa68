"""Ringleader ASGD: rounds in which every client moves the model once, by the mean of a table of all clients' updates."""

from typing import ClassVar, final

import numpy as np
import torch
from pydantic import Field

from asyncfeded.config import INT32_MAX, Settings
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules.buffers import parts, zeros
from asyncfeded.rules.decision import Decision, Reply, State, Update


@final
class Ringleader(Settings):
    """Ringleader ASGD (Maranjyan and Richtarik 2025, arXiv 2509.22860).

    A round has two phases:

        gather    until each client is in the table: G_i <- G_i + Delta, b_i <- b_i + 1; x stays
        move      until each client has moved x once. The first arrival of client i in this phase:
                      G_i <- G_i + Delta,    b_i <- b_i + 1
                      x_{t+1} = x_t + eta_g g_bar,    g_bar = mean_i G_i / b_i
                  each further arrival of it goes into the table of the next round; x stays

    Clients are replied to at once, so nobody waits, nothing is thrown away, and tau is at most 2 n - 2 for n clients. The
    source takes gradients; here Delta stands for them. It has no public code. A step of 1 / n makes the n steps of a round
    go as far as a round of FedAvg.
    A version is a step. eta in the record is eta_g / (n b_i) for an arrival that moves x, and 0 for others. Statistics are
    averaged with weight 1 / n at each arrival that moves x. A lost client is not waited for; what it has sent counts.
    State: `K`, int64 (clients,), as first given. `b` and `b_next`, int64 (clients,). `moved` and `lost`, int64 (clients,),
    1 for clients that have moved x in this round and for lost ones. `moving`, int64 (1,), 1 in the second phase. `g_bar`,
    float32 (size,), zeros behind the parameters. `G` and `G_next`, float32 (clients, parameters), the means G_i / b_i.
    """

    eta_g: float = Field(0.0, ge=0)
    """eta_g: the server's learning rate. 0: one over the number of clients."""
    proximal: ClassVar[float] = 0.0
    groups: ClassVar[int] = INT32_MAX

    def init(self, model: GlobalModel, epochs: np.ndarray) -> State:
        """See `Rule`."""
        clients, n = len(model.base), model.layout.num_params
        counts = {name: np.zeros(clients, np.int64) for name in ("b", "b_next", "moved", "lost")}
        tables = {name: zeros(model, clients, n) for name in ("G", "G_next")}
        one = {"moving": np.zeros(1, np.int64), "g_bar": zeros(model, model.layout.size)}
        return {"K": epochs.copy()} | counts | one | tables

    def on_arrival(self, update: Update, model: GlobalModel, state: State) -> Decision:
        """See `Rule`."""
        n, client, clients = model.layout.num_params, update.client, len(model.base)
        w, base, moving = update.weights, model.base[update.client], bool(state["moving"][0])
        state["lost"][client] = 0
        later = moving and bool(state["moved"][client])
        G, b = (state["G_next"], state["b_next"]) if later else (state["G"], state["b"])
        b[client] += 1
        for part in parts(n):
            change = (w[part] - base[part]).sub_(G[client, part]).div_(int(b[client]))
            G[client, part].add_(change)
            if moving and not later:
                state["g_bar"][part].add_(change, alpha=1.0 / clients)
        eta = 0.0
        if moving and not later:
            model.x[n:].lerp_(w[n:], 1.0 / clients)
            model.step(state["g_bar"], self.eta_g or 1.0 / clients)
            state["moved"][client] = 1
            eta = (self.eta_g or 1.0 / clients) / (clients * int(b[client]))
        self._turn(state)
        return Decision(update.gamma, eta, (Reply(client, int(state["K"][client])),))

    def on_loss(self, client: int, model: GlobalModel, state: State) -> tuple[Reply, ...]:
        """See `Waits`: the phase ends if it waited for this client only."""
        state["lost"][client] = 1
        self._turn(state)
        return ()

    def _turn(self, state: State) -> None:
        """Begin the next phase, if this one is over."""
        b, moved, lost, G = state["b"], state["moved"], state["lost"], state["G"]
        if state["moving"][0] and (moved | lost).all() and moved.any():
            G.copy_(state["G_next"])
            b[:] = state["b_next"]
            state["G_next"].zero_()
            state["b_next"].fill(0)
            moved.fill(0)
            state["moving"][0] = 0
        if not state["moving"][0] and ((b > 0) | lost.astype(bool)).all() and b.any():
            for part in parts(G.shape[1]):
                torch.mean(G[:, part], 0, out=state["g_bar"][part])
            state["moving"][0] = 1
