"""The orders that each worker has in hand: sent to it, and not answered. One, or two where rounds are short.

While a worker trains for the first, the second lies in MPI's queues. So it begins its next round at once, and its update and
the next order travel meanwhile, with all that they wait for: two ranks that wake up, and the server's work before.
"""

from collections import deque
from collections.abc import Sequence

from asyncfeded.wire.messages import PendingOrder
from asyncfeded.wire.transfer import Sending

SHORT_S = 30e-3
"""A worker gets a second order while its rounds take less than this: so long that order may lie and nobody trains for it."""


class InHand:
    """Which orders the workers have. A worker answers them in the order in which it was sent them.

    Args:
        two: for each worker, whether it may have two.

    Attributes:
        orders: those of each worker, the first one first.
        sending: their transfers; None where MPI took nothing. Those of a worker that has gone stay: MPI may still use them.
    """

    def __init__(self, two: Sequence[bool]) -> None:
        self._two = two
        self.orders: list[deque[PendingOrder]] = [deque() for _ in two]
        self.sending: list[deque[Sending | None]] = [deque() for _ in two]
        self._given_up = [0 for _ in two]  # how many of a worker's orders, the first ones, it will answer in vain
        # When it began with the first order, in seconds of listening, and how long its last round took.
        self._since_s, self._round_s = [0.0 for _ in two], [SHORT_S for _ in two]

    def first(self, worker: int) -> PendingOrder | None:
        """The order that a worker answers next; None if it has none."""
        orders = self.orders[worker]
        return orders[0] if orders else None

    def leaves(self, worker: int) -> int | None:
        """How many orders a worker that is sent one leaves to the others; None: it has no room for one.

        While it still trains, it leaves one to each that has not two.
        """
        if not (orders := self.orders[worker]):
            return 0
        if len(orders) > 1 or not self._two[worker] or self._round_s[worker] >= SHORT_S:
            return None
        return sum(len(others) < 2 for others in self.orders) - 1

    def give(self, worker: int, pending: PendingOrder, sending: Sending | None, now: float) -> None:
        """A worker is sent an order. Its time begins now, or when the one before is answered."""
        if not (orders := self.orders[worker]):
            self._since_s[worker] = now
        orders.append(pending)
        self.sending[worker].append(sending)

    def answers(self, worker: int, now: float) -> float:
        """A worker begins to answer its first order. Returns the seconds that it took for it."""
        self._round_s[worker] = seconds = now - self._since_s[worker]
        self._since_s[worker] = now
        return seconds

    def has_first(self, worker: int) -> bool:
        """Whether the first order was sent completely."""
        sending = self.sending[worker]
        return not sending or sending[0] is None or sending[0].sent()

    def answered(self, worker: int) -> tuple[PendingOrder | None, bool]:
        """A worker has answered. Returns the order, None if it had none, and whether that was given up before."""
        if not (orders := self.orders[worker]):
            return None, False
        self.sending[worker].popleft()
        if not self._given_up[worker]:
            return orders.popleft(), False
        self._given_up[worker] -= 1
        return orders.popleft(), True

    def give_up(self, worker: int, gone: bool) -> list[PendingOrder]:
        """Expect no more answers of a worker. Returns its orders; if it has not `gone`, they stay: it may still answer."""
        orders = self.orders[worker]
        expected = list(orders)[self._given_up[worker] :]
        if gone:
            orders.clear()
        self._given_up[worker] = len(orders)
        return expected

    def forget(self, worker: int) -> list[object]:
        """Another process takes a worker's place, with nothing in hand. Returns what MPI may still use."""
        before = [self.orders[worker], self.sending[worker]]
        self.orders[worker], self.sending[worker], self._given_up[worker] = deque(), deque(), 0
        return list(before)
