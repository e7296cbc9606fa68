"""FedAvg: all clients wait for the last one, then the model moves by the mean of all updates."""

from typing import ClassVar, final

import numpy as np

from asyncfeded.config import Settings
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules import barrier
from asyncfeded.rules.decision import Decision, Reply, State, Update


@final
class FedAvg(Settings):
    """FedAvg (McMahan 2017, arXiv 1602.05629), with all clients in every round.

        x_{t+1} = x_t + sum_i (N_i / N) Delta_i,    N = sum_i N_i

    N_i is the number of samples of client i: those seen, over K; with training.unit = "steps", those of a step. A version
    is a round; nobody is stale, tau = 0. eta in the record is N_i / N for the last update of a round, and 0 for those
    before it.

    The updates of a round are held and summed in the order of clients: one running sum would need less memory, but float32
    sums depend on their order, and the result of a synchronous round must not depend on who was faster.
    Statistics: sum_i (N_i / N) of the clients', which is no less than the least of them.
    State: `K`, int64 (clients,), as first given. `arrived` and `lost`, int64 (clients,), 1 for clients that wait and for
    clients that are lost. `samples`, float64 (clients,), N_i. `delta`, float32 (clients, size), Delta of each client that
    waits and, behind the parameters, its statistics.
    """

    proximal: ClassVar[float] = 0.0

    def init(self, model: GlobalModel, epochs: np.ndarray) -> State:
        """See `Rule`."""
        return barrier.init(model, epochs)

    def on_arrival(self, update: Update, model: GlobalModel, state: State) -> Decision:
        """See `Rule`."""
        return barrier.on_arrival(update, model, state)

    def on_loss(self, client: int, model: GlobalModel, state: State) -> tuple[Reply, ...]:
        """See `Waits`."""
        return barrier.on_loss(client, model, state)
