"""Synchronous averaging: the global model takes one step when the last client has arrived, and all are replied to together.

Shared by FedAvg and FedProx, which differ in the clients' local loss only.
"""

import numpy as np
import torch

from asyncfeded.rules.buffers import parts, take_statistics, zeros
from asyncfeded.rules.decision import Decision, Reply, State, Update
from asyncfeded.staleness import GlobalModel


def init(model: GlobalModel, epochs: np.ndarray) -> State:
    """The state before the first update: nobody has arrived."""
    clients = len(model.base)
    return {
        "K": epochs.copy(),
        "arrived": np.zeros(clients, np.int64),
        "samples": np.zeros(clients, np.float64),
        "delta": zeros(clients, model.layout.size),
    }


def on_arrival(update: Update, model: GlobalModel, state: State) -> Decision:
    """Keep Delta; from the last client, x += sum_i (N_i / N) Delta_i, summed in the order of clients, and reply to all."""
    n, client = model.layout.num_params, update.client
    delta = torch.from_numpy(state["delta"])
    torch.sub(update.weights[:n], model.base[client][:n], out=delta[client, :n])
    delta[client, n:].copy_(update.weights[n:])
    state["samples"][client] = update.samples / update.epochs
    state["arrived"][client] = 1
    if not state["arrived"].all():
        return Decision(update.gamma, 0.0, ())
    shares = (state["samples"] / state["samples"].sum()).tolist()
    total = delta[0]  # its row serves as the sum: no other vector is needed
    for part in parts(total.numel()):
        total[part].mul_(shares[0])
        for other in range(1, len(shares)):
            total[part].add_(delta[other, part], alpha=shares[other])
    take_statistics(model, total, 1.0)
    model.step(total, 1.0)
    state["arrived"].fill(0)
    return Decision(update.gamma, shares[client], tuple(Reply(i, K) for i, K in enumerate(state["K"].tolist())))
