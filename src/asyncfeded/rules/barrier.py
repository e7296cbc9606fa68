"""Synchronous averaging: the global model takes one step when the last client has arrived, and all are replied to together.

The step does not wait for lost clients.

Shared by FedAvg and FedProx, which differ in the clients' local loss only, and by FedAvgM and FedAdam, which make another
step of the mean of all updates.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules.buffers import parts, take_statistics, zeros
from asyncfeded.rules.decision import Decision, Reply, State, Update

Move: TypeAlias = Callable[[GlobalModel, Tensor, State], None]
"""Makes a step of the model by the mean of all updates, float32 (size,), which it may write; zeros behind the parameters."""


def by_the_mean(model: GlobalModel, mean: Tensor, state: State) -> None:
    """x_{t+1} = x_t + mean."""
    model.step(mean, 1.0)


def init(model: GlobalModel, epochs: np.ndarray) -> State:
    """The state before the first update: no client has arrived."""
    clients = len(model.base)
    return {
        "K": epochs.copy(),
        "arrived": np.zeros(clients, np.int64),
        "lost": np.zeros(clients, np.int64),
        "samples": np.zeros(clients, np.float64),
        "delta": zeros(model, clients, model.layout.size),
    }


def on_arrival(update: Update, model: GlobalModel, state: State, move: Move = by_the_mean) -> Decision:
    """Keep Delta; from the last client, move by sum_i (N_i / N) Delta_i, summed in their order, and reply to all."""
    n, client = model.layout.num_params, update.client
    delta = state["delta"]
    torch.sub(update.weights[:n], model.base[client][:n], out=delta[client, :n])
    delta[client, n:].copy_(update.weights[n:])
    state["samples"][client] = update.samples / update.epochs
    state["arrived"][client], state["lost"][client] = 1, 0
    version, who = model.version, np.flatnonzero(state["arrived"])
    replies = _step_if_all_are_here(model, state, move)
    share = float(state["samples"][client] / state["samples"][who].sum())
    return Decision(update.gamma, share if model.version > version else 0.0, replies)


def on_loss(client: int, model: GlobalModel, state: State, move: Move = by_the_mean) -> tuple[Reply, ...]:
    """Make the step if the others waited only for this client. Its own update counts if it had arrived."""
    state["lost"][client] = 1
    return _step_if_all_are_here(model, state, move) if state["arrived"].any() else ()


def _step_if_all_are_here(model: GlobalModel, state: State, move: Move) -> tuple[Reply, ...]:
    arrived, lost, delta = state["arrived"], state["lost"], state["delta"]
    if not (arrived | lost).all():
        return ()
    who = np.flatnonzero(arrived).tolist()
    shares = (state["samples"] / state["samples"][who].sum()).tolist()
    total = delta[who[0]]  # its row serves as the sum: no other vector is needed
    for part in parts(total.numel()):
        total[part].mul_(shares[who[0]])
        for other in who[1:]:
            total[part].add_(delta[other, part], alpha=shares[other])
    take_statistics(model, total, 1.0)
    move(model, total, state)
    arrived.fill(0)
    return tuple(Reply(client, int(state["K"][client])) for client in who if not lost[client])
