"""FedAT: clients of like speed form a tier, which is synchronous in itself; tiers do not wait for each other."""

import math
from typing import final

import numpy as np
import torch
from pydantic import Field

from asyncfeded.config import Settings
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules.buffers import parts, zeros
from asyncfeded.rules.decision import Decision, Reply, State, Update


@final
class FedAT(Settings):
    """FedAT (Chai 2021, SC, arXiv 2010.05958), with all clients of a tier in each of its rounds, without compression.

        y_m     = sum_i (N_i / N) w_i over the clients i of tier m,    when the last of them has arrived
        T_m     <- T_m + 1
        x_{t+1} = sum_m (T_{M+1-m} / T) y_m,    T = sum_m T_m             (tier 1 is the fastest, y_m = x_0 at first)

    So the slowest tier has the weight of how often the fastest has come. The local loss has (mu / 2) ||w - x_s||^2 added.
    The source measures the clients' speeds before it trains. Here the first round does: the first n / M clients that arrive
    are tier 1, the next n / M tier 2, and so on. T_m begins at 1; from 0, as in the source, the first rounds of the
    fast tiers would have no weight. N_i is that of FedAvg. A version is the round of a tier. eta in the record is the weight
    of w_i in x for the last client of a tier, and 0 for the others. Statistics are averaged as parameters are. A lost client
    is not waited for.
    State: `K`, int64 (clients,), as first given. `tier`, int64 (clients,), from 0, -1: not known yet. `joined`, int64 (1,),
    clients whose first update has come. `arrived` and `lost`, int64 (clients,). `rounds`, int64 (tiers,), T. `samples`,
    float64 (tiers,), of those that have arrived. `mean`, the weighted mean of these, and `y`, float32 (tiers, size). `move`,
    float32 (size,).
    """

    tiers: int = Field(5, ge=1)
    """M: number of tiers, at most one for each client. 1: FedProx."""
    mu: float = Field(0.4, ge=0)
    """mu: weight of the proximal term in the clients' local loss (lambda in the source). 0: none."""

    @property
    def proximal(self) -> float:
        """See `Rule`."""
        return self.mu

    @property
    def groups(self) -> int:
        """See `versions_held`."""
        return self.tiers

    def init(self, model: GlobalModel, epochs: np.ndarray) -> State:
        """See `Rule`."""
        clients, size = len(model.base), model.layout.size
        tiers = min(self.tiers, clients)
        return {
            "K": epochs.copy(),
            "tier": np.full(clients, -1, np.int64),
            "joined": np.zeros(1, np.int64),
            "arrived": np.zeros(clients, np.int64),
            "lost": np.zeros(clients, np.int64),
            "rounds": np.ones(tiers, np.int64),
            "samples": np.zeros(tiers, np.float64),
            "mean": zeros(model, tiers, size),
            "y": model.x.repeat(tiers, 1),
            "move": zeros(model, size),
        }

    def on_arrival(self, update: Update, model: GlobalModel, state: State) -> Decision:
        """See `Rule`."""
        client, tier, samples = update.client, state["tier"], state["samples"]
        if tier[client] < 0:
            tier[client] = int(state["joined"][0]) * len(samples) // len(tier)
            state["joined"] += 1
        mine, own = int(tier[client]), update.samples / update.epochs
        state["arrived"][client], state["lost"][client] = 1, 0
        samples[mine] += own
        share = float(own / samples[mine])
        state["mean"][mine].lerp_(update.weights, share)
        replies = self._move(model, state)
        eta = share * self._weights(state)[mine] if replies else 0.0
        return Decision(update.gamma, eta, replies)

    def on_loss(self, client: int, model: GlobalModel, state: State) -> tuple[Reply, ...]:
        """See `Waits`. A client that is lost before its first update belongs to the slowest tier."""
        state["lost"][client] = 1
        if state["tier"][client] < 0:
            state["tier"][client] = len(state["rounds"]) - 1
        return self._move(model, state)

    def _weights(self, state: State) -> list[float]:
        """Of each tier in x."""
        return list((state["rounds"][::-1] / state["rounds"].sum()).tolist())

    def _move(self, model: GlobalModel, state: State) -> tuple[Reply, ...]:
        """Make a step for the tiers that are complete; who gets a reply."""
        tier, arrived, lost, replied = state["tier"], state["arrived"], state["lost"], []
        tiers = len(state["rounds"])
        for m in range(tiers):
            members = tier == m
            known = state["joined"][0] >= math.ceil((m + 1) * len(tier) / tiers) or (tier >= 0).all()
            if known and arrived[members].any() and (arrived | lost)[members].all():
                state["y"][m].copy_(state["mean"][m])
                state["rounds"][m] += 1
                state["samples"][m] = 0.0
                replied += np.flatnonzero(members & (arrived == 1) & (lost == 0)).tolist()
                arrived[members] = 0
        if not replied:
            return ()
        weights, y, move = self._weights(state), state["y"], state["move"]
        for part in parts(move.numel()):
            torch.mul(y[0, part], weights[0], out=move[part])
            for m in range(1, tiers):
                move[part].add_(y[m, part], alpha=weights[m])
        model.mix(move, 1.0)
        return tuple(Reply(client, int(state["K"][client])) for client in sorted(replied))
