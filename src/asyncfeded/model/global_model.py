"""The global model, the base models that clients train from, and the distances between them.

This file holds x_t, its version t, and for each client the base model x_s that it was sent last. The base of a client lies
in the buffer that its reply is sent from (bases.py): it may be written only after the client's next update has arrived.
Behind the base that buffer holds what the client keeps for itself (`Layout.own`); it is merged with nothing, and no rule
sees it. A version that several clients have is held once, unless something is their own. This file decides nothing: the
rules decide how an update is merged.

Where several ranks are the server, each has a slice of all this. Norms and other sums go over all slices: they are taken by
chunk, and the numbers of all chunks are added in one order, so that the bits do not depend on the number of slices.
"""

import math
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from asyncfeded.model import kernel
from asyncfeded.model.bases import Bases
from asyncfeded.model.disk import Disk
from asyncfeded.model.flat import Layout
from asyncfeded.model.slices import Gather

HELPER = ThreadPoolExecutor(1, "measure")
"""A thread for a second core, beside the core that receives; it starts with the first large update."""


@dataclass
class Arriving:
    """What is known of an update while its parts arrive."""

    version: int
    """Version of x when the first part arrived."""
    moved_sq: Future[list[float]]
    """||x - x_s||^2 of each chunk."""
    change_sq: list[float] = field(default_factory=list)
    """||w - x_s||^2 of each chunk so far."""
    finite: bool = True
    """Whether the parts so far are finite behind the parameters."""


class Pass(Protocol):
    """One pass over a part of the parameters."""

    def __call__(self, x: Tensor, w: Tensor, base: Tensor, *, start: int, stop: int) -> None:
        """Write x and base, which become x_{t+1}, over [start, stop)."""


class Merging(NamedTuple):
    """A merge under way."""

    client: int
    w: Tensor
    share: float
    """Weight of its statistics."""
    base: Tensor
    """x_s; the base of the client becomes x_{t+1}, and lies elsewhere if others hold x_s too."""
    by: Pass
    """Merges a part of the parameters."""


class GlobalModel:
    """x_t and the bases x_s of all clients.

    An update is measured part by part as it arrives. If a reply to the same client follows a merge, the merge is carried
    out part by part as the reply is sent; otherwise when x is next read. Both give the same bits as a merge in one piece.

    Args:
        initial: float32 (layout.size,), x_0. It is copied. The bases are on its device.
        layout: what lies where.
        num_clients: number of clients.
        held: how many versions the clients will hold at least, as far as is known: memory for so many is taken now.
        disk: where the bases lie; None: in memory, on the device of `initial`.
        gather: brings the numbers of all slices together, where this is one of several; None: it is the whole model.

    Attributes:
        version: t, the number of updates merged.
        reply: float32 (layout.sent,) by client; what it is sent: its base, and what is its own.
        base: float32 (size,) by client; x_s, in `reply`. Valid after the client's first `hand_out`. After a merge of the
            client's update it is valid once that merge is finished.
        base_version: int64 (clients,); s, or -1 before the first `hand_out`.
        disk: as given.
    """

    def __init__(
        self,
        initial: Tensor,
        layout: Layout,
        num_clients: int,
        held: int | None = None,
        disk: Disk | None = None,
        gather: Gather | None = None,
    ) -> None:
        self.layout, self.disk, self._gather = layout, disk, gather
        self._x = initial.detach().clone()
        self.version = 0
        self._num_own = layout.sent - layout.size
        held = num_clients if held is None else held
        self._bases = Bases(lambda: self._x.new_zeros(layout.sent), layout, num_clients, held, disk)
        self.reply, self.base = self._bases.reply, self._bases.base
        self.base_version = np.full(num_clients, -1, np.int64)
        self._arriving: dict[int, Arriving] = {}  # by client: updates with a part measured
        self._merging: Merging | None = None
        self._merged = 0  # elements that are merged so far
        self._newest = 0  # the client that was sent the newest model first
        self._copied: dict[int, int] = {}  # by client: elements handed out so far

    @property
    def x(self) -> Tensor:
        """float32 (size,), the global model; the first `layout.num_params` elements are parameters, the rest statistics."""
        if self._merging is not None:
            self.finish_merge()
        return self._x

    @property
    def num_bytes(self) -> int:
        """Memory of the global model and the bases."""
        return 4 * self._x.numel() + self._bases.num_bytes

    def over_parts(self, of: Callable[[slice], tuple[float, float]]) -> list[tuple[float, float]]:
        """Two numbers of each part of the parameters, in the order of parts, of all slices: every reduction begins so.

        A rule must not reduce a vector in another way: it may have a slice of it only. All server ranks make the same calls.

        Args:
            of: gives the numbers of a part of vectors of length `layout.num_params` or more.

        Returns:
            The numbers; behind the parameters there may follow more, which are 0.
        """
        n = self.layout.num_params
        return self._all_slices([of(slice(start, min(start + kernel.CHUNK, n))) for start in range(0, n, kernel.CHUNK)])

    def dot(self, a: Tensor, b: Tensor) -> float:
        """The sum of a b over the parameters, in float64, of all slices.

        Args:
            a: float32 (layout.num_params,) or longer.
            b: the same.
        """
        pairs = self.over_parts(lambda part: (float(a[part].double().dot(b[part].double())), 0.0))
        return kernel.add_up(total for total, _ in pairs)

    def norm(self, a: Tensor) -> float:
        """||a||_2 over the parameters, as `dot`."""
        return math.sqrt(self.dot(a, a))

    def _all_slices(self, pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
        """The pairs of all slices, given those of the first chunks of this one."""
        if self._gather is None:
            return pairs
        mine = np.zeros((-(-self.layout.sent // kernel.CHUNK), 2))
        mine[: len(pairs)] = np.reshape(pairs, (-1, 2))
        return [(first, second) for first, second in self._gather(mine).tolist()]

    def measure(self, client: int, w: Tensor, start: int, stop: int) -> None:
        """Do the part of the work of `distances` that an arrived part allows; `distances` does the rest.

        Args:
            client: whose base.
            w: float32 (layout.sent,), the client's model; [start, stop) of it has arrived.
            start: first element: 0, or `stop` of the call before; a multiple of kernel.CHUNK.
            stop: end of the part.
        """
        if stop - start == w.numel() or not self.base[client].numel():
            return  # it arrives in one piece, or nobody will ask for the distances
        n, base = self.layout.num_params, self.base[client]
        if start == 0:
            # The distance of x from the base does not depend on the update: another core computes it during the receive.
            moved = HELPER.submit(kernel.squared_distances, self.x, base, 0, n)
            self._arriving[client] = Arriving(self.version, moved)
        arriving = self._arriving[client]
        if start < n:
            arriving.change_sq += kernel.squared_distances(self.without_own(w), base, start, min(stop, n))
        arriving.finite &= self._rest_is_finite(w, start, stop)

    def distances(self, client: int, w: Tensor) -> tuple[float, float]:
        """The distances of the global model and of a client's model from the client's base.

        They are the numerator and the denominator of gamma (arXiv 2205.13797).

        Args:
            client: whose base.
            w: float32 (size,) or longer, the client's model.

        Returns:
            ||x_t - x_s||_2 and ||w - x_s||_2 over the parameters. The second is not finite if any element of w is not, or if
            one is too far from x_s for float32.
        """
        n, base = self.layout.num_params, self.base[client]
        arriving = self._arriving.pop(client, None)
        if arriving is None:
            pairs, finite = kernel.sums(self.x, self.without_own(w), base, n), self._rest_is_finite(w, 0, w.numel())
        else:
            moved, finite = arriving.moved_sq.result(), arriving.finite
            if arriving.version != self.version:  # x has changed since then
                moved = kernel.squared_distances(self.x, base, 0, n)
            pairs = list(zip(moved, arriving.change_sq, strict=True))
        if not finite:
            pairs[:1] = [(pairs[0][0] if pairs else 0.0, math.nan)]
        moved_sq = change_sq = 0.0
        for moved_of_chunk, change_of_chunk in self._all_slices(pairs):
            moved_sq += moved_of_chunk
            change_sq += change_of_chunk
        return math.sqrt(moved_sq), math.sqrt(change_sq)

    def own(self, client: int) -> Tensor:
        """What is a client's own: float32 (own,), in its reply; 0 before it has sent any."""
        return self._bases.own(client)

    def without_own(self, w: Tensor) -> Tensor:
        """The model in a message, float32 (size,); the message itself if there is nothing else in it."""
        return w[: self.layout.size] if self._num_own else w

    def keep_own(self, client: int, w: Tensor) -> None:
        """Take what is a client's own from its update.

        Args:
            client: whose update.
            w: float32 (layout.sent,), finite.
        """
        if self._num_own:
            if (before := self._bases.alone(client)) is not self.base[client]:
                self.base[client].copy_(before)
            self.own(client).copy_(w[self.layout.size :])

    def merge(self, client: int, w: Tensor, eta: float) -> None:
        """x_{t+1} = x_t + eta (w - x_s) for the parameters, and hand the result out to the client.

        Statistics (batch-norm means and variances) are averaged with weight min(eta, 1) instead: adding differences could
        make a variance negative.

        Args:
            client: whose update.
            w: float32 (size,), the client's model, finite; it must not be written before `finish_merge`.
            eta: step size.
        """
        self.merge_by(client, w, partial(kernel.apply, eta=eta), eta)

    def merge_by(self, client: int, w: Tensor, by: Pass, share: float) -> None:
        """Merge an update by another pass over x, w and x_s, and hand the result out to the client, as `merge` does.

        Args:
            client: whose update.
            w: float32 (size,), the client's model, finite; it must not be written before `finish_merge`.
            by: the pass, element by element; it is called part by part.
            share: weight with which statistics are averaged, if it is below 1.
        """
        if self._merging is not None:
            self.finish_merge()
        self._merging, self._merged = Merging(client, w, share, self._bases.alone(client), by), 0
        self.version += 1
        self.base_version[client], self._newest = self.version, client

    def mix(self, w: Tensor, a: float) -> None:
        """x_{t+1} = (1 - a) x_t + a w, for parameters and statistics.

        Args:
            w: float32 (size,), a client's model, finite.
            a: weight of w, at most 1.
        """
        self.x.lerp_(w, a)
        self.version += 1

    def step(self, direction: Tensor, eta: float) -> None:
        """x_{t+1} = x_t + eta direction, for parameters and statistics.

        Args:
            direction: float32 (size,).
            eta: step size.
        """
        self.x.add_(direction, alpha=eta)
        self.version += 1

    def finish_merge(self) -> None:
        """Carry out the rest of the last merge."""
        if self._merging is not None:
            self._merge_up_to(self._x.numel())

    def hand_out(self, client: int, stop: int | None = None) -> Tensor:
        """Make the base of a client equal to x_t, and return the reply to send to the client.

        Args:
            client: whose base.
            stop: set only the elements up to here (None: all), after those of an earlier call. x must not change meanwhile.
        """
        size = self._x.numel()
        stop = size if stop is None else min(stop, size)
        if client not in self._copied and self.base_version[client] != self.version:  # else it has been chosen
            self.hold(client)
        if self._merging is not None and self._merging.client == client:
            self._merge_up_to(stop)
        elif self.base_version[client] != self.version:
            part = slice(self._copied.pop(client, 0), stop)
            self.base[client][part].copy_(self.x[part])
            if stop < size:
                self._copied[client] = stop
            else:
                self.base_version[client], self._newest = self.version, client
        return self.reply[client]

    def hold(self, client: int) -> None:
        """Choose the buffer of the reply to a client: the one of x_t if a client has that, otherwise one of its own."""
        if self.base_version[client] == self.version:
            return  # it may be merged just now
        self.finish_merge()
        if self.base_version[self._newest] == self.version and not self._num_own:
            self._bases.join(client, self._newest)
            self.base_version[client] = self.version
        else:
            self._bases.alone(client)

    def forget(self, client: int) -> None:
        """Give the memory of a client's base back, but not that of what is its own."""
        if self._merging is not None and self._merging.client == client:
            self.finish_merge()
        self._arriving.pop(client, None)
        self._copied.pop(client, None)
        self._bases.forget(client)
        self.base_version[client] = -1

    def keep(self) -> tuple[list[Tensor], Callable[[], None]]:
        """Keep all replies as they are, while a checkpoint is written: a client that moves on gets another buffer.

        Returns:
            The reply of each client, and what to call once they may change.
        """
        self.finish_merge()
        return list(self.reply), self._bases.keep()

    def restore(
        self,
        x: Tensor,
        version: int,
        base_version: np.ndarray,
        bases: Iterable[tuple[int, Tensor]],
        own: Iterable[tuple[int, Tensor]],
    ) -> None:
        """Take the state of a checkpoint.

        Args:
            x: float32 (size,), x_t. It is copied, and so is all else, one after the other.
            version: t.
            base_version: int64 (clients,), s of each client.
            bases: version and float32 (size,) of the x_s that clients train from; the base of `version` is x.
            own: client and float32 (own,).
        """
        self._x.copy_(x)
        self.version, self.base_version[:] = version, base_version
        having: dict[int, list[int]] = {}  # by version: its clients
        for client, s in enumerate(base_version.tolist()):
            having.setdefault(s, []).append(client)
        self._newest = having.get(version, [0])[0]
        # A client without an order gets a new base before its old one, which is not there, is read.
        for s, base in chain([(version, x)], bases):
            for client in (clients := having.get(s, [])):
                if client == clients[0] or self._num_own:
                    self._bases.alone(client)
                    self.base[client].copy_(base)
                else:
                    self._bases.join(client, clients[0])
                self._bases.put_away(client)
        for client, kept in own:
            self.own(client).copy_(kept)
            self._bases.put_away(client)

    def _rest_is_finite(self, w: Tensor, start: int, stop: int) -> bool:
        """Whether a part is finite behind the parameters; that counts in no norm."""
        n = self.layout.num_params
        return stop <= n or bool(torch.isfinite(w[max(start, n) : stop]).all())

    def _merge_up_to(self, stop: int) -> None:
        assert self._merging is not None
        client, w, share, before, by = self._merging
        start, n, base = self._merged, self.layout.num_params, self.base[client]
        if start < n:
            if base is not before:
                base[start : min(stop, n)].copy_(before[start : min(stop, n)])
            by(self._x, w, base, start=start, stop=min(stop, n))
        if stop > n:
            statistics = slice(max(start, n), stop)
            self._x[statistics].lerp_(w[statistics], min(share, 1.0))
            base[statistics].copy_(self._x[statistics])
        self._merged = stop
        if stop == self._x.numel():
            self._merging = None


def is_finite(x: Tensor) -> bool:
    """Whether all of a model, float32 (size,), is finite."""
    # inf - inf is nan; torch.isfinite takes 1.5 models of memory.
    return all(map(math.isfinite, kernel.squared_distances(x, x)))
