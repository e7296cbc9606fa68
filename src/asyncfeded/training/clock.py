"""Ordered clocks: the next update is the one that is due; on the wall clock, the one that arrived (wire/server_wire.py).

An ordered clock stands between server and wire. It gives orders to the workers and holds each update back until its turn.
So the server sees the same updates in the same order for any number of ranks, any MPI and any load of the machine. It
decides nothing but the order.
"""

import heapq
import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

from asyncfeded.wire.messages import Arrival, Lost, Order, Refused, Stuck
from asyncfeded.wire.nearest import Nearest
from asyncfeded.wire.server_wire import ServerWire

Due = Callable[[Order, float], float]
"""Takes an order and the time at which it is given; returns the time when its update is due. Seconds; infinity: never."""


class OrderedClock:
    """A `Wire` on which updates arrive when they are due; ties go to the lower client id.

    A worker trains one client at a time: of the clients that live on it, the one that is due first. An update that is
    trained ahead of its turn waits in its receive buffer, so the wire needs one buffer for each client.

    Args:
        wire: the wire to the workers.
        due: when an update is due.
        start_s: start time of the clock.

    Attributes:
        due_s: for each client, when the update of its last order is due; infinity: never.
    """

    def __init__(self, wire: ServerWire | Nearest, due: Due, start_s: float = 0.0) -> None:
        self._wire, self._due = wire, due
        self._now = start_s
        self.due_s: dict[int, float] = {}
        self._out: list[tuple[float, int]] = []  # heap of (due, client): orders whose update was not taken yet
        self._answered: dict[int, Arrival | Refused] = {}  # by client: answers that are not yet due

    def now(self) -> float:
        """See `Wire`: the time at which the last update taken was due."""
        return self._now

    def reply(self, order: Order, weights: Tensor, ready: Callable[[int], object]) -> None:
        """See `Wire`. Rank 0."""
        due = self.due_s[order.client] = self._due(order, self._now)
        heapq.heappush(self._out, (due, order.client))
        if due < float("inf"):
            self._wire.reply(order, weights, ready, due)
        else:
            ready(weights.numel())

    def next(self) -> Arrival | Refused | Lost | Stuck | None:
        """See `Wire`. Rank 0."""
        while (event := self._wire.next()) is not None:
            if isinstance(event, Lost):
                self._out = [(due, client) for due, client in self._out if client not in event.clients]
                heapq.heapify(self._out)
                return event
            if isinstance(event, Refused) and not (event.answered and event.client in self._waited_for):
                return event
            # It waits for its turn, not for the server.
            self._answered[event.client] = event._replace(queue=0) if isinstance(event, Arrival) else event
        if self._out and self._out[0][0] == math.inf:
            return Stuck("no client has another turn in the order that is repeated; its record is damaged")
        if not self._out or self._out[0][1] not in self._answered:
            return None
        self._now, client = heapq.heappop(self._out)
        return self._answered.pop(client)

    def release(self, arrival: Arrival) -> None:
        """See `Wire`."""
        self._wire.release(arrival)

    def pause(self) -> None:
        """See `Wire`."""
        self._wire.pause()

    def stop(self) -> int:
        """See `Wire`. Rank 0; afterwards the wire is closed. Updates trained ahead of their turn count as discarded."""
        waiting = [event for event in self._answered.values() if isinstance(event, Arrival)]
        for arrival in waiting:
            self._wire.release(arrival)
        return len(waiting) + self._wire.stop()

    @property
    def _waited_for(self) -> set[int]:
        return {client for _, client in self._out}


class Resumed:
    """`Due` of a resumed run: orders that were out at the checkpoint keep their time.

    Args:
        kept: for each such client, when the update of its first order is due.
        due: `Due` of all other orders.
    """

    def __init__(self, kept: dict[int, float], due: Due) -> None:
        self._kept, self._due = kept, due

    def __call__(self, order: Order, now: float) -> float:
        """See `Due`."""
        return self._kept.pop(order.client) if order.client in self._kept else self._due(order, now)


class Replay:
    """`Due` that repeats the order of arrival in a record: the n-th update of a client takes its old place.

    Args:
        updates: record.UPDATE (n,), in order of arrival.

    Raises:
        ValueError: that cannot have been the order of a run.
    """

    def __init__(self, updates: np.ndarray) -> None:
        by_client = updates[np.argsort(updates["client"], kind="stable")]
        again = by_client["client"][1:] == by_client["client"][:-1]
        early = np.flatnonzero(again & (by_client["base_version"][1:] < by_client["version"][:-1]))
        if len(early):
            before, row = by_client[early[0]], by_client[early[0] + 1]
            raise ValueError(
                f"the record that is repeated is damaged: client {row['client']} made an update to version "
                f"{before['version']}, and its next one from version {row['base_version']}, which is older"
            )
        self._times: dict[int, list[float]] = {}
        self._shares: dict[int, list[float]] = {}
        last = -math.inf
        for client, time_s, share in zip(*(updates[name].tolist() for name in ("client", "time_s", "share")), strict=True):
            last = time_s if time_s > last else math.nextafter(last, math.inf)  # no two at once: the order is the record's
            self._times.setdefault(client, []).append(last)
            self._shares.setdefault(client, []).append(share)

    def __call__(self, order: Order, now: float) -> float:
        """When the update was taken, as recorded, or infinity if it was not."""
        times = self._times.get(order.client, [])
        return times[order.round] if order.round < len(times) else math.inf

    def share(self, client: int, number: int) -> float:
        """What a client was told in a round about the part of the run that is done, as recorded; 1 if it did not answer."""
        shares = self._shares.get(client, [])
        return shares[number] if number < len(shares) else 1.0
