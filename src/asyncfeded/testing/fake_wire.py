"""A wire without MPI, for tests of a server, a rule or an observer."""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from asyncfeded.wire.messages import Arrival, Joined, Lost, Order, Refused


class Sent(NamedTuple):
    """A reply: what the client was sent, and the server's buffer, which must stay so until the client answers."""

    client: int
    round: int
    version: int
    epochs: int
    steps: int
    share: float
    learning_rate: float
    weights: Tensor
    buffer: Tensor


class FakeWire:
    """A `wire.Wire` without MPI that plays a script, and fails where the server breaks the wire's contract.

    The script has one item for every call of `next`: None where nothing has arrived, (client, w), (client, w, fields of the
    `Arrival` by name), a `Joined`, or a `Refused` or `Lost`, whose clients are not out any more. Versions and epochs of an
    arrival are those that the client was sent. `events` tells what was done, in order.
    """

    def __init__(self, script: Iterable[object]) -> None:
        self._script = iter(script)
        self._out: dict[int, Sent] = {}
        self._taken: Arrival | None = None
        self._start = time.perf_counter()
        self.events: list[str] = []
        self.replies: list[Sent] = []

    def next(self) -> Arrival | Refused | Lost | Joined | None:
        """See `Wire`."""
        assert self._taken is None, f"the update of client {self._taken.client} was not released"
        self.events.append("next")
        item = next(self._script, "end")
        assert item != "end", "the server asks for more updates than the script has"
        if item is None:
            return None
        if isinstance(item, Refused | Lost | Joined):
            clients = item.clients if isinstance(item, Lost) else ()
            if isinstance(item, Refused) and item.answered:
                clients = (item.client,)
            for client in clients:
                self._out.pop(client, None)
            return item
        client, w, *fields = cast("tuple[Any, ...]", item)
        sent = self._returned(client)
        self.events.append(f"take {client}")
        n = len(self.events)  # makes the numbers of every arrival its own
        figures = (n, 2 * n, 3.0 * n, 4.0 * n, 5.0 * n)
        arrival = Arrival(client, sent.round, sent.version, sent.epochs, *figures, torch.as_tensor(w).clone())
        self._taken = arrival._replace(**dict(*fields))
        return self._taken

    def now(self) -> float:
        """See `Wire`."""
        return time.perf_counter() - self._start

    def release(self, arrival: Arrival) -> None:
        """See `Wire`."""
        assert self._taken is not None, f"released without need: {arrival}"
        assert arrival[:9] == self._taken[:9]
        self._taken.weights.fill_(torch.nan)  # the buffer may take the next update
        self._taken = None

    def reply(self, order: Order, weights: Tensor, ready: Callable[[int], object]) -> None:
        """See `Wire`."""
        for stop in (*range(2, len(weights), max(2, len(weights) // 4)), len(weights)):
            ready(stop)
        assert order.client not in self._out, f"client {order.client} trains already"
        self.events.append(f"reply {order.client}")
        self._out[order.client] = Sent(*order, weights.clone(), weights)
        self.replies.append(self._out[order.client])

    def pause(self) -> None:
        """See `Wire`."""
        self.events.append("pause")

    def stop(self) -> int:
        """See `Wire`."""
        assert "stop" not in self.events, "stopped twice"
        self.events.append("stop")
        return sum(1 for client in list(self._out) if self._returned(client))

    def _returned(self, client: int) -> Sent:
        sent = self._out.pop(client)
        assert torch.equal(sent.buffer, sent.weights), f"the reply to client {client} was written while it was out"
        return sent
