"""Reach: each parameter moves towards that of the client, never beyond it; the rate follows from measured curvature."""

import math
from functools import partial
from typing import Annotated, ClassVar, Literal, final

import numpy as np
from pydantic import Field, model_validator

from asyncfeded.config import Count, Settings
from asyncfeded.model import kernel
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules.buffers import zeros
from asyncfeded.rules.decision import Decision, Reply, State, Update
from asyncfeded.rules.local_epochs import by_speed, check_bounds, check_first

FLAT = 1e-6
"""Least curvature that counts: no rate is above c / FLAT."""
WARM_UP = 5
"""Rounds of each client, in the mean, until the rate is the whole one: a loss may be flat at first, and steep soon after."""


@final
class Reach(Settings):
    """Reach, a rule of this project (docs/reach.md).

        s       = w + m tau v - x_t, but between 0 and Delta = w - x_s   (what is left of the client's way)
        move    = alpha s + m v,     v <- v + (move - v) / (H n)         (momentum of the movement)
        x_{t+1} = x_t + move
        K_i     <- E[first K_i v_i / mean_j v_j],    v_i = epochs that client i has done so far
        rate    = f c / L,    L^2 = mean over clients of L_i^2

    The first three are element by element; tau is how many updates old x_s is, n the number of clients, and m is mu. Since
    x_s was sent, momentum alone has moved the model by about m tau v, and what is left of the client's way is measured from
    there. L_i^2 is the mean of the squares of all curvatures that client i has measured: of the gradient along itself, in
    the first step of each round (`Measures`). f rises from 1/2 to 1 while clients measure their first `WARM_UP` rounds. The
    rate goes with a reply; the first round has training.learning_rate. K is that of `DelayedNesterov`. eta in the record is
    alpha. Statistics are averaged with weight alpha (`GlobalModel.merge_by`).
    State: `K` and `first_K`, int64 (clients,). `epochs_done`, int64 (clients,). `v`, float32 (parameters,). `curvature_sq`,
    float64 (clients,), L_i^2, and `measured`, int64 (clients,), of how many rounds.
    """

    alpha: float = Field(0.6, gt=0, le=1)
    """alpha: part of what is left of the client's way that the model goes. 1: all of it."""
    mu: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = "auto"
    """mu: weight of the momentum. auto: 1 - 1 / sqrt(n), with which n clients that want the same move the model by up to
    sqrt(n) times their way in n arrivals. 0: none."""
    H: float = Field(3.0, ge=1)
    """H: over how many rounds of all clients the momentum is a mean. With less than 1 it would swing."""
    rate: Literal["curvature", "training"] = "curvature"
    """Where the learning rate of the clients comes from: curvature (c / L, for plain sgd, which takes one gradient more per
    round) or training (training.learning_rate, for any optimizer)."""
    c: float = Field(1.0, gt=0)
    """c: the learning rate in units of 1 / L. Local momentum m (training.momentum) needs about 1 - m of it."""
    epochs_min: Count = 1
    """Lower bound of K. The same as epochs_max: K never changes."""
    epochs_max: Count = 10
    """Upper bound of K."""
    proximal: ClassVar[float] = 0.0

    @property
    def measures(self) -> str:
        """See `Measures`."""
        return "curvature" if self.rate == "curvature" else ""

    @model_validator(mode="after")
    def _bounds(self) -> "Reach":
        check_bounds(self.epochs_min, self.epochs_max)
        return self

    def init(self, model: GlobalModel, epochs: np.ndarray) -> State:
        """See `Rule`."""
        check_first(epochs, self.epochs_min, self.epochs_max)
        clients = len(epochs)
        return {
            "K": epochs.copy(),
            "first_K": epochs.copy(),
            "epochs_done": np.zeros(clients, np.int64),
            "curvature_sq": np.zeros(clients),
            "measured": np.zeros(clients, np.int64),
            "v": zeros(model, model.layout.num_params),
        }

    def on_arrival(self, update: Update, model: GlobalModel, state: State) -> Decision:
        """See `Rule`."""
        client, n = update.client, len(model.base)
        m = 1.0 - 1.0 / math.sqrt(n) if self.mu == "auto" else self.mu
        follow, ahead = 1.0 / (self.H * n), m * update.tau
        step = partial(kernel.reach, v=state["v"], alpha=self.alpha, mu=m, follow=follow, ahead=ahead)
        model.merge_by(client, update.weights, step, self.alpha)
        state["epochs_done"][client] += update.epochs
        if state["epochs_done"].all():
            K = by_speed(state["first_K"], state["epochs_done"], client)
            state["K"][client] = min(max(K, self.epochs_min), self.epochs_max)
        rate = self.next_rate(update, state) if self.measures else 0.0
        return Decision(update.gamma, self.alpha, (Reply(client, int(state["K"][client]), rate),))

    def next_rate(self, update: Update, state: State) -> float:
        """The learning rate of a client that has arrived; 0, that of the config, before any curvature is known."""
        squared, measured = state["curvature_sq"], state["measured"]
        if 0 < update.measured < math.inf:
            measured[update.client] += 1
            squared[update.client] += (update.measured**2 - squared[update.client]) / measured[update.client]
        known = measured > 0
        if not known.any():
            return 0.0
        f = min(1.0, 0.5 + 0.5 * int(measured.sum()) / (WARM_UP * len(known)))
        return f * self.c / max(math.sqrt(squared[known].mean()), FLAT)
