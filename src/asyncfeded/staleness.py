"""The global model, the models that clients are out with, and how far apart they are.

Holds x_t, its version t, and for each client the base model x_s that it was sent last. The base of a client is also the
buffer that its reply is sent from: it may be written only when the client's next update has arrived. Decides nothing: how
an update enters is for the rules.
"""

import math

import numpy as np
import torch
from torch import Tensor

from asyncfeded import kernel
from asyncfeded.flat import Layout


class GlobalModel:
    """x_t and the bases x_s of all clients.

    Args:
        initial: float32 (layout.size,) in host memory, x_0; copied.
        layout: what lies where.
        num_clients: number of clients.

    Attributes:
        x: float32 (size,), the global model; the first `layout.num_params` elements are parameters, the rest statistics.
        version: t, the number of updates merged.
        base: float32 (size,) by client; x_s, valid after the client's first `hand_out`.
        base_version: int64 (clients,); s, or -1 before the first `hand_out`.
    """

    def __init__(self, initial: Tensor, layout: Layout, num_clients: int) -> None:
        self.layout = layout
        self.x = initial.detach().clone()
        self.version = 0
        self.base = [torch.zeros(layout.size) for _ in range(num_clients)]  # zeros: written now, not page by page later
        self.base_version = np.full(num_clients, -1, np.int64)

    @property
    def num_bytes(self) -> int:
        """Memory of the global model and the bases."""
        return 4 * self.x.numel() * (1 + len(self.base))

    def distances(self, client: int, w: Tensor) -> tuple[float, float]:
        """How far the global model and a client's model are from where the client started.

        The numerator and the denominator of gamma (arXiv 2205.13797).

        Args:
            client: whose base.
            w: float32 (size,), the client's model.

        Returns:
            ||x_t - x_s||_2 and ||w - x_s||_2 over the parameters. The second is not finite if any element of w is not
            (parameters and statistics), or is too far from x_s for float32.
        """
        n = self.layout.num_params
        moved_sq, change_sq = kernel.sums(self.x[:n], w[:n], self.base[client][:n])
        if n < w.numel() and not bool(torch.isfinite(w[n:]).all()):
            change_sq = math.nan
        return math.sqrt(moved_sq), math.sqrt(change_sq)

    def merge(self, client: int, w: Tensor, eta: float) -> None:
        """x_{t+1} = x_t + eta (w - x_s) for the parameters, and hand the result out to the client.

        Statistics (batch-norm means and variances) are averaged with weight min(eta, 1) instead: a sum of differences
        could make a variance negative.

        Args:
            client: whose update.
            w: float32 (size,), the client's model, finite.
            eta: step size.
        """
        n = self.layout.num_params
        base = self.base[client]
        kernel.apply(self.x[:n], w[:n], base[:n], eta)
        if n < w.numel():
            self.x[n:].lerp_(w[n:], min(eta, 1.0))
            base[n:].copy_(self.x[n:])
        self.version += 1
        self.base_version[client] = self.version

    def mix(self, w: Tensor, a: float) -> None:
        """x_{t+1} = (1 - a) x_t + a w, statistics too.

        Args:
            w: float32 (size,), a client's model, finite.
            a: weight of it, at most 1.
        """
        self.x.lerp_(w, a)
        self.version += 1

    def step(self, direction: Tensor, eta: float) -> None:
        """x_{t+1} = x_t + eta direction, statistics too.

        Args:
            direction: float32 (size,).
            eta: step size.
        """
        self.x.add_(direction, alpha=eta)
        self.version += 1

    def hand_out(self, client: int) -> Tensor:
        """The base of a client, made x_t: what to send it."""
        if self.base_version[client] != self.version:
            self.base[client].copy_(self.x)
            self.base_version[client] = self.version
        return self.base[client]
