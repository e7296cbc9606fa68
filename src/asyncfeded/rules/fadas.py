"""FADAS: FedBuff with an adaptive server step (AMSGrad) that is smaller after long delays."""

from typing import ClassVar, final

import numpy as np
import torch
from pydantic import Field

from asyncfeded.config import Settings
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules.buffers import add_delta, gather_statistics, parts, take_statistics, zeros
from asyncfeded.rules.decision import Decision, Reply, State, Update


@final
class Fadas(Settings):
    """FADAS (Wang, ICML 2024, arXiv 2407.18365), the delay-adaptive variant.

    After M arrivals, element by element:

        D       = mean of the M Delta
        m       <- beta1 m + (1 - beta1) D
        v       <- beta2 v + (1 - beta2) D^2,    v_max <- max(v_max, v)
        x_{t+1} = x_t + eta_t m / (sqrt(v_max) + epsilon)
        eta_t   = eta, or min(eta, 1 / tau_max) if tau_max > tau_c

    tau_max is the largest staleness among the M. There is no bias correction: with beta1 = 0.9 and beta2 = 0.99 the first
    step moves each parameter by eta, with beta1 = beta2 = 0 every step does as long as |D| grows.
    Clients are replied to at once. A version is a step. eta in the record is eta_t for the M-th update, although its weight
    differs from element to element, and 0 for the others.
    Statistics have no moments: they become their mean over the M arrivals.
    State: `K`, int64 (clients,), as first given. `count`, int64 (1,), updates in D. `tau_max`, int64 (1,). `D`, float32
    (size,), the sum of Delta. `m`, `v`, `v_max`, float32 (parameters,).
    """

    M: int = Field(10, ge=1)
    """M: updates per step of the global model."""
    eta: float = Field(0.01, gt=0)
    """eta: the server's learning rate; about how far a step moves each parameter."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """beta1: decay of the first moment, per step. 0: none is kept."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """beta2: decay of the second moment, per step. 0: none is kept."""
    epsilon: float = Field(1e-8, gt=0)
    """epsilon: bounds the step of a parameter that hardly changes."""
    tau_c: int = Field(0, ge=0)
    """tau_c: staleness in versions beyond which the step is bounded by 1 / tau_max. 0: number of clients."""
    proximal: ClassVar[float] = 0.0

    def init(self, model: GlobalModel, epochs: np.ndarray) -> State:
        """See `Rule`."""
        moments = {name: zeros(model, model.layout.num_params) for name in ("m", "v", "v_max")}
        counters = {name: np.zeros(1, np.int64) for name in ("count", "tau_max")}
        return {"K": epochs.copy(), "D": zeros(model, model.layout.size)} | counters | moments

    def on_arrival(self, update: Update, model: GlobalModel, state: State) -> Decision:
        """See `Rule`."""
        n, client, w = model.layout.num_params, update.client, update.weights
        D, count, tau_max = state["D"], state["count"], state["tau_max"]
        count += 1
        tau_max[0] = max(int(tau_max[0]), update.tau)
        add_delta(D[:n], w[:n], model.base[client][:n], 1.0)
        gather_statistics(D, w, n, 1.0 / int(count[0]))
        eta = 0.0
        if count[0] >= self.M:
            eta = self.eta
            if tau_max[0] > (self.tau_c or len(model.base)):
                eta = min(eta, 1.0 / int(tau_max[0]))
            m, v, v_max = (state[name] for name in ("m", "v", "v_max"))
            for part in parts(n):
                mean = D[part].div_(self.M)
                m[part].mul_(self.beta1).add_(mean, alpha=1 - self.beta1)
                v[part].mul_(self.beta2).addcmul_(mean, mean, value=1 - self.beta2)
                torch.maximum(v_max[part], v[part], out=v_max[part])
                torch.div(m[part], v_max[part].sqrt().add_(self.epsilon), out=D[part])
            take_statistics(model, D, 1.0)
            model.step(D, eta)
            D.zero_()
            count[0] = tau_max[0] = 0
        return Decision(update.gamma, eta, (Reply(client, int(state["K"][client])),))
