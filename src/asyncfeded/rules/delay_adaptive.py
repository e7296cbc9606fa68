"""Delay-adaptive asynchronous steps: constant up to a delay, then falling with one over the delay."""

from typing import ClassVar, final

import numpy as np
from pydantic import Field

from asyncfeded.config import Settings
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules.decision import Decision, Reply, State, Update


@final
class DelayAdaptive(Settings):
    """Delay-adaptive step size (Koloskova 2022, arXiv 2206.08307; Mishchenko 2022, arXiv 2206.07638).

        eta     = eta_0 if tau <= tau_C, else eta_0 tau_C / tau
        x_{t+1} = x_t + eta Delta

    The sources take gradients; here Delta, the sum of a client's local steps, stands for them.
    Statistics are averaged with weight eta, at most 1 (`GlobalModel.merge`).
    State: `K`, int64 (clients,), as first given.
    """

    eta_0: float = Field(1.0, gt=0)
    """eta_0: step size of an update no staler than tau_c."""
    tau_c: int = Field(0, ge=0)
    """tau_C: staleness in versions from which the step falls; a very large one keeps it constant. 0: number of clients."""
    proximal: ClassVar[float] = 0.0

    def init(self, model: GlobalModel, epochs: np.ndarray) -> State:
        """See `Rule`."""
        return {"K": epochs.copy()}

    def on_arrival(self, update: Update, model: GlobalModel, state: State) -> Decision:
        """See `Rule`."""
        tau_c = self.tau_c or len(model.base)
        eta = self.eta_0 if update.tau <= tau_c else self.eta_0 * tau_c / update.tau
        model.merge(update.client, update.weights, eta)
        return Decision(update.gamma, eta, (Reply(update.client, int(state["K"][update.client])),))
