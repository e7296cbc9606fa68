"""AsyncFedED: step size and next local epochs from the distance that the global model has moved."""

import math
from typing import ClassVar, Literal, final

import numpy as np
from pydantic import Field, model_validator

from asyncfeded.config import INT32_MAX, Count, Settings
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules import distances
from asyncfeded.rules.buffers import zeros
from asyncfeded.rules.decision import Decision, Reply, State, Update
from asyncfeded.rules.local_epochs import check_bounds, check_first, nearest


@final
class AsyncFedED(Settings):
    """AsyncFedED (arXiv 2205.13797).

        gamma   = ||x_t - x_s|| / ||Delta||,    Delta = w - x_s       (staleness)
        eta     = lambda / (gamma + epsilon)                          (step size)
        x_{t+1} = x_t + eta Delta
        K       <- K + E[(gamma_bar - gamma) kappa]                   (next local epochs)

    What the paper leaves open is chosen here: the rounding E, bounds of K, and that a client that did not move (Delta = 0)
    has gamma 0 if the global model did not move either, and infinity otherwise, so eta = 0; its K stays.

    With another `distance` D (arXiv 2603.08211), u = x_t - x_s and v the running variance:

        l1, linf       ||u|| / ||Delta|| in that norm
        squared_l2     ||u||^2 / ||Delta||^2
        cosine         1 - cos(u, Delta), 0 to 2
        mahalanobis    ||u||_v / ||Delta||_v,    ||u||_v^2 = sum u^2 / (v + floor)
                       v <- decay v + (1 - decay) Delta^2, before gamma; floor = variance_floor mean(v)

    v is the variance of Delta about 0. It starts at 0 without a bias correction, which would cancel in the ratio.
    Statistics are averaged with weight eta, at most 1 (`GlobalModel.merge`).
    State: `K`, int64 (clients,). With mahalanobis `variance`, float32 (parameters,), v.
    """

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
    epochs_min: Count = 1
    """Lower bound of K."""
    epochs_max: Count = 10
    """Upper bound of K."""

    distance: Literal["euclidean", "l1", "linf", "cosine", "squared_l2", "mahalanobis"] = "euclidean"
    """D: how staleness is measured. Any other than euclidean costs a pass over the models more, and needs other values of
    lambda, epsilon and gamma_bar."""
    variance_decay: float = Field(0.99, ge=0, lt=1)
    """Decay per update of the running variance that mahalanobis divides by. 0: the square of the newest Delta alone."""
    variance_floor: float = Field(0.001, gt=0)
    """Added to each parameter's variance, in units of their mean: bounds the weight of a parameter that seldom changes."""
    proximal: ClassVar[float] = 0.0

    @model_validator(mode="after")
    def _bounds(self) -> "AsyncFedED":
        check_bounds(self.epochs_min, self.epochs_max)
        return self

    def init(self, model: GlobalModel, epochs: np.ndarray) -> State:
        """See `Rule`."""
        check_first(epochs, self.epochs_min, self.epochs_max)
        state = {"K": epochs.copy()}
        if self.distance == "mahalanobis":
            state["variance"] = zeros(model, model.layout.num_params)
        return state

    def on_arrival(self, update: Update, model: GlobalModel, state: State) -> Decision:
        """See `Rule`."""
        gamma = update.gamma if self.distance == "euclidean" else self.staleness(update, model, state)
        eta = self.lambda_ / (gamma + self.epsilon)
        model.merge(update.client, update.weights, eta)
        K = state["K"]
        if update.change > 0 and math.isfinite(gamma):
            K[update.client] = self.next_epochs(int(K[update.client]), gamma)
        return Decision(gamma, eta, (Reply(update.client, int(K[update.client])),))

    def staleness(self, update: Update, model: GlobalModel, state: State) -> float:
        """Gamma by the distance chosen; follows the variance."""
        n = model.layout.num_params
        x, w, base = model.x[:n], update.weights[:n], model.base[update.client][:n]
        floor = 0.0
        if self.distance == "mahalanobis":  # also of an update that is fresh
            variance = state["variance"]
            floor = self.variance_floor * distances.follow_variance(model, variance, w, base, self.variance_decay)
        if update.moved == 0 or update.change == 0:
            return update.gamma
        if self.distance == "squared_l2":
            return update.gamma * update.gamma  # not **, which raises where this is infinite
        if self.distance == "cosine":
            return 1.0 - min(max(distances.dot(model, x, w, base) / update.moved / update.change, -1.0), 1.0)
        if self.distance == "l1":
            moved, change = distances.l1(model, x, w, base)
        elif self.distance == "linf":
            moved, change = distances.linf(model, x, w, base)
        else:
            moved, change = distances.mahalanobis(model, x, w, base, variance, floor)
        return moved / change

    def next_epochs(self, epochs: int, gamma: float) -> int:
        """K <- K + E[(gamma_bar - gamma) kappa], within the bounds."""
        step = min(max((self.gamma_bar - gamma) * self.kappa, -INT32_MAX), INT32_MAX)  # infinity has no nearest integer
        rounded = nearest(step) if self.rounding == "nearest" else math.floor(step)
        return min(max(epochs + rounded, self.epochs_min), self.epochs_max)
