"""AsyncFedED: step size and next local epochs from the Euclidean distance that the global model has moved."""

import math
from typing import Literal, final

import numpy as np
from pydantic import Field, model_validator

from asyncfeded.config import Settings
from asyncfeded.rules.decision import Decision, Reply, State, Update
from asyncfeded.staleness import GlobalModel


@final
class AsyncFedED(Settings):
    """AsyncFedED (arXiv 2205.13797).

        gamma   = ||x_t - x_s|| / ||Delta||,    Delta = w - x_s       (staleness)
        eta     = lambda / (gamma + epsilon)                          (step size)
        x_{t+1} = x_t + eta Delta
        K       <- K + E[(gamma_bar - gamma) kappa]                   (next local epochs)

    What the paper leaves open is chosen here: the rounding E, bounds of K, and that a client that did not move (Delta = 0)
    has gamma 0 if the global model did not move either, and infinity otherwise, so eta = 0; its K stays.
    State: `K`, int64 (clients,).
    """

    name: Literal["asyncfeded"] = "asyncfeded"
    lambda_: float = Field(1.0, gt=0, alias="lambda")
    """lambda: scale of the step size lambda / (gamma + epsilon)."""
    epsilon: float = Field(1.0, gt=0)
    """epsilon: bounds the step size; a fresh update (gamma = 0) gets lambda / epsilon."""
    gamma_bar: float = Field(3.0, ge=0)
    """gamma_bar: the staleness at which K stays; a staler client gets fewer local epochs, a fresher one more."""
    kappa: float = Field(1.0, ge=0)
    """kappa: local epochs gained or lost per unit of staleness. 0: K never changes."""
    rounding: Literal["nearest", "floor"] = "nearest"
    """E[.]: to the nearest integer (halves up), or down."""
    epochs_min: int = Field(1, ge=1)
    """Lower bound of K."""
    epochs_max: int = Field(10, ge=1)
    """Upper bound of K."""

    @model_validator(mode="after")
    def _bounds(self) -> "AsyncFedED":
        if self.epochs_min > self.epochs_max:
            raise ValueError(f"epochs_min = {self.epochs_min} is above epochs_max = {self.epochs_max}; swap or change one")
        return self

    def init(self, num_clients: int, epochs: int) -> State:
        """See `Rule`."""
        if not self.epochs_min <= epochs <= self.epochs_max:
            raise ValueError(
                f"training.epochs = {epochs} is outside the bounds of K, {self.epochs_min} to {self.epochs_max}; change it, "
                f"rule.epochs_min or rule.epochs_max"
            )
        return {"K": np.full(num_clients, epochs, np.int64)}

    def on_arrival(self, update: Update, model: GlobalModel, state: State) -> Decision:
        """See `Rule`."""
        gamma = 0.0  # a model that has not moved is not stale, however small the update
        if update.moved > 0:
            gamma = update.moved / update.change if update.change > 0 else math.inf
        eta = self.lambda_ / (gamma + self.epsilon)
        model.merge(update.client, update.weights, eta)
        K = state["K"]
        if update.change > 0:
            K[update.client] = self.next_epochs(int(K[update.client]), gamma)
        return Decision(gamma, eta, (Reply(update.client, int(K[update.client])),))

    def next_epochs(self, epochs: int, gamma: float) -> int:
        """K <- K + E[(gamma_bar - gamma) kappa], within the bounds."""
        step = (self.gamma_bar - gamma) * self.kappa
        rounded = math.floor(step + 0.5) if self.rounding == "nearest" else math.floor(step)
        return min(max(epochs + rounded, self.epochs_min), self.epochs_max)
