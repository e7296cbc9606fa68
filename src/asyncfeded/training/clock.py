"""Ordered clocks: the next update is the one that is due; on the wall clock, the one that arrived (wire/server_wire.py).

An ordered clock stands between server and wire. It gives orders to the workers and holds each update back until its turn.
So the server sees the same updates in the same order for any number of ranks, any MPI and any load of the machine. It
decides nothing but the order.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable

import numpy as np
from torch import Tensor

from asyncfeded.store.attendance import ATTENDANCE
from asyncfeded.wire.messages import Arrival, Joined, Lost, Order, Refused, Stuck
from asyncfeded.wire.nearest import Nearest
from asyncfeded.wire.server_wire import ServerWire

Due = Callable[[Order, float], float]
"""Takes an order and the time at which it is given; returns the time when its update is due. Seconds; infinity: never."""
Meanwhile = Callable[[int], Lost | Joined | Refused | None]
"""Takes the number of updates taken so far; returns what happened before the next one, one at a time."""


def nobody(taken: int) -> None:
    """`Meanwhile` of a run in which nobody comes or goes."""


class OrderedClock:
    """A `Wire` on which updates arrive when they are due; ties go to the lower client id.

    A worker trains one client at a time: of those that live on it, the one that is due first, and where none waits, one
    that lives elsewhere (wire/queues.py). An update that is trained ahead of its turn waits in its receive buffer, so the
    wire needs one buffer for each client.

    Args:
        wire: the wire to the workers.
        due: when an update is due.
        start_s: start time of the clock.
        meanwhile: gives what happened next, after so many updates were taken; for a run that is repeated.

    Attributes:
        taken: how many updates were taken.
        due_s: for each client, when the update of its last order is due; infinity: never.
    """

    def __init__(self, wire: ServerWire | Nearest, due: Due, start_s: float = 0.0, meanwhile: Meanwhile = nobody) -> None:
        self._wire, self._due, self._meanwhile = wire, due, meanwhile
        self._now, self.taken = start_s, 0
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

    def next(self) -> Arrival | Refused | Lost | Joined | Stuck | None:
        """See `Wire`. Rank 0."""
        if (repeated := self._meanwhile(self.taken)) is not None:
            if isinstance(repeated, Refused) and repeated.answered:
                self._forget(repeated.client)
            elif isinstance(repeated, Lost):
                self._forget(*repeated.clients)
            return repeated
        while (event := self._wire.next()) is not None:
            if isinstance(event, Lost):
                self._forget(*event.clients)
            if isinstance(event, Lost | Joined):
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
        self.taken += 1
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

    def _forget(self, *clients: int) -> None:
        self._out = [(due, client) for due, client in self._out if client not in clients]
        heapq.heapify(self._out)

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
        events: record.EVENT (m,), who came and went meanwhile (store.attendance), and what was refused.

    Attributes:
        absent: the clients that were not there at the start.

    Raises:
        ValueError: that cannot have been the order of a run.
    """

    def __init__(self, updates: np.ndarray, events: np.ndarray) -> None:
        by_client = updates[np.argsort(updates["client"], kind="stable")]
        again = by_client["client"][1:] == by_client["client"][:-1]
        early = np.flatnonzero(again & (by_client["base_version"][1:] < by_client["version"][:-1]))
        if len(early):
            before, row = by_client[early[0]], by_client[early[0] + 1]
            raise ValueError(
                f"the record that is repeated is damaged: client {row['client']} made an update to version "
                f"{before['version']}, and its next one from version {row['base_version']}, which is older"
            )
        self._rounds: dict[tuple[int, int], tuple[float, float]] = {}  # by client and round: time and share
        last = -math.inf
        columns = (updates[name].tolist() for name in ("client", "round", "time_s", "share"))
        for client, number, time_s, share in zip(*columns, strict=True):
            last = time_s if time_s > last else math.nextafter(last, math.inf)  # no two at once: the order is the record's
            self._rounds[client, number] = last, share
        at_start = events["kind"] == b"absent"
        self.absent: list[int] = events["client"][at_start].tolist()
        self._num_updates, self._round = len(updates), dict[int, int]()  # by client: of its order
        self._events = deque[np.void]()
        with_row = {int(row) for row in np.flatnonzero(~updates["accepted"])}  # the event of such an update precedes it
        for event in reversed(events[~at_start]):
            row = int(event["updates"])
            if event["kind"] == b"refused" and row in with_row and updates["client"][row] == event["client"]:
                with_row.discard(row)
            elif event["client"] >= 0:
                self._events.appendleft(event)

    def __call__(self, order: Order, now: float) -> float:
        """When the update was taken, as recorded, or infinity if it was not."""
        self._round[order.client] = order.round
        return self._rounds.get((order.client, order.round), (math.inf, 1.0))[0]

    def goes_on(self, taken: int) -> bool:
        """Whether anything came after so many updates."""
        return taken < self._num_updates or bool(self._events)

    def meanwhile(self, taken: int) -> Lost | Joined | Refused | None:
        """What happened next, once so many updates have been taken; None if the next update comes first."""
        if not self._events or self._events[0]["updates"] > taken:
            return None
        row = self._events.popleft()
        client, kind = int(row["client"]), row["kind"].decode()
        if kind == "refused":  # by the wire; if it was an answer, the record has none to that order
            return Refused(client, "as in the run", (client, self._round.get(client, -1)) not in self._rounds)
        if ATTENDANCE[kind]:
            return Joined(client, "as it did in the run")
        return Lost(f"client {client}", (client,), "as it was in the run", left=kind == "left")

    def share(self, client: int, number: int) -> float:
        """What a client was told in a round about the part of the run that is done, as recorded; 1 if it did not answer."""
        return self._rounds.get((client, number), (math.inf, 1.0))[1]
