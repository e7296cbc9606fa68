"""Orders that are due soon go to the workers; the others wait here, their bases in a file (model/disk.py).

It stands between an ordered clock and the wire to the workers. The order of updates does not depend on it, since the update
that is due first is always among the nearest. It bounds how far ahead of their turn clients are trained, and so how many
bases and updates are in memory at a time.
"""

from bisect import bisect_left, insort
from collections.abc import Callable

from torch import Tensor

from asyncfeded.model.disk import Disk
from asyncfeded.wire.messages import Arrival, Joined, Lost, Order, Refused
from asyncfeded.wire.server_wire import ServerWire


class Nearest:
    """A wire for `OrderedClock` that gives the wire below only the orders that are due next.

    Args:
        wire: the wire to the workers.
        disk: where the replies lie.
        most: how many orders are near: their replies are in memory, and so are their updates.
    """

    def __init__(self, wire: ServerWire, disk: Disk, most: int) -> None:
        self._wire, self._disk, self._most = wire, disk, most
        self._out: list[tuple[float, int]] = []  # (due, client), sorted: orders whose update was not yet released
        self._places: dict[int, tuple[float, int]] = {}  # by client: due and round of the same
        self._far: dict[int, tuple[Order, Tensor]] = {}  # by client: those that the wire below does not have yet

    def reply(self, order: Order, weights: Tensor, ready: Callable[[int], object], due: float) -> None:
        """See `ServerWire`. Rank 0."""
        ready(weights.numel())
        client = order.client
        self._leave(client)
        insort(self._out, (due, client))
        self._places[client], self._far[client] = (due, order.round), (order, weights)
        if bisect_left(self._out, (due, client)) < self._most:
            self._give(client)
        else:
            self._disk.put_away(weights)

    def next(self) -> Arrival | Refused | Lost | Joined | None:
        """See `ServerWire`. Rank 0."""
        event = self._wire.next()
        if isinstance(event, Lost):
            for client in event.clients:
                self._leave(client)
        elif isinstance(event, Refused) and event.answered:
            self._leave(event.client)
        return event

    def release(self, arrival: Arrival) -> None:
        """See `ServerWire`. Rank 0."""
        self._wire.release(arrival)
        if self._places.get(arrival.client, (0.0, -1))[1] == arrival.round:  # otherwise it has its next order already
            self._leave(arrival.client)

    def pause(self) -> None:
        """See `ServerWire`."""
        self._wire.pause()

    def stop(self) -> int:
        """See `ServerWire`. Rank 0."""
        return self._wire.stop()

    def _leave(self, client: int) -> None:
        """Forget an order, if there is one. Another one may then be near."""
        if client not in self._places:
            return
        place = bisect_left(self._out, (self._places.pop(client)[0], client))
        del self._out[place]
        self._far.pop(client, None)
        if place < self._most <= len(self._out) and (comes := self._out[self._most - 1][1]) in self._far:
            self._give(comes)

    def _give(self, client: int) -> None:
        """Give an order that is near to the wire below, and begin to read its reply: it waits there for a worker."""
        order, weights = self._far.pop(client)
        self._disk.read_ahead(weights)
        self._wire.reply(order, weights, lambda stop: None, self._places[client][0])
