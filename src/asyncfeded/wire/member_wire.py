"""Inside a group: an order and its model go from rank to rank, each chunk as soon as it is there.

The leader has them from the server (client_wire.py); every rank passes them on to the next one, so that the transfers
overlap however many ranks there are. At the end the server's BYE goes the same way. Only the leader sends updates.
"""

from collections.abc import Sequence

import numpy as np

from asyncfeded.mpi.launcher import MPI
from asyncfeded.wire.group import Group
from asyncfeded.wire.messages import BYE, HEAD, HEADER, HEADER_TAG, RANKS_LOST, Order, unpack
from asyncfeded.wire.transfer import Peer, Receiving, Sending


class Onward:
    """What a rank passes on to the next one of its group; nothing on the last one.

    Args:
        group: the ranks.
        parts: float32, the parts of the wire's buffer that arrive side by side.
    """

    def __init__(self, group: Group, parts: Sequence[np.ndarray]) -> None:
        self._group, self._parts = group, parts
        self._next = Peer(group.comm, group.rank + 1, "the next rank") if group.rank + 1 < group.size else None
        self._header: MPI.Request | None = None
        self._sending: list[Sending] = []

    def begin(self, head: np.ndarray) -> None:
        """Pass on the HEAD bytes of a header, which must not change until `finish`. Raises GroupLostError as `push` does."""
        if self._next:
            with self._group.told():
                self._header = self._next.comm.Isend([head, MPI.BYTE], self._next.rank, HEADER_TAG)

    def push(self, done: Sequence[int]) -> bool:
        """Pass on the first so many elements of each part, as far as can be done now. Never waits.

        Returns:
            Whether MPI has been given all of these.

        Raises:
            GroupLostError: MPI says that the next rank has died.
        """
        if self._next is None or self._header is None:
            return True
        if not self._sending:
            self._sending = [Sending(self._next, part, None if i else self._header, i) for i, part in enumerate(self._parts)]
        with self._group.told():
            return sum(sending.push(ready) for sending, ready in zip(self._sending, done, strict=True)) == len(done)

    def finish(self) -> None:
        """Wait until all is sent, so that the buffer may be written.

        Raises:
            GroupLostError: a rank of the group has died.
        """
        if self._sending:  # after a BYE there is no model
            sizes = [len(part) for part in self._parts]
            self._group.wait(lambda: self.push(sizes))
            self._group.wait(lambda: all(sending.sent() for sending in self._sending))
        elif self._header is not None:  # a request that is complete counts as False
            self._group.wait(self._header.Test)
        self._header, self._sending = None, []


class MemberWire:
    """The wire of a rank that is not the leader of its group; used as `ClientWire` is. Client ranks.

    Every method raises GroupLostError where a rank of the group has died.

    Args:
        group: the ranks.
        parts: float32, the parts of the wire's buffer, as the leader has them.

    Attributes:
        ranks_lost: as of `ClientWire`.
    """

    def __init__(self, group: Group, parts: Sequence[np.ndarray]) -> None:
        self._group, self._parts, self._onward, self.ranks_lost = group, parts, Onward(group, parts), False
        self._before = Peer(group.comm, group.rank - 1, "the rank before")
        self._inbox, self._left = np.zeros(1, HEADER), False

    def receive(self) -> Order | None:
        """Wait for the next order. Returns None to stop."""
        head = self._inbox.view(np.uint8)[:HEAD]
        self._group.wait(self._before.comm.Irecv([head, MPI.BYTE], self._before.rank, HEADER_TAG).Test)
        _, _, flags, client, epochs, number, version, steps, _, rate, *_, share = unpack(self._inbox)
        self._onward.begin(head)
        if flags & BYE:
            self.ranks_lost, self._left = bool(flags & RANKS_LOST), True
            self._onward.finish()
            return None
        receiving = [Receiving(self._before, part, number) for number, part in enumerate(self._parts)]

        def go_on() -> bool:
            if sum(part.poll() is not None for part in receiving):  # all of them are polled
                self._group.moved()
            self._onward.push([part.done for part in receiving])
            return all(part.complete for part in receiving)

        self._group.wait(go_on)
        self._onward.finish()
        return Order(client, number, version, epochs, steps, share, rate)

    def stopped(self) -> bool:
        """The leader is told, and tells the others (training/gradients.py)."""
        return False

    def send(self, order: Order, *done: object, **figures: object) -> None:
        """Nothing: the leader sends the update."""

    def finish(self) -> None:
        """Wait until all workers have left."""
        if not self._left:
            order = self.receive()
            assert order is None
