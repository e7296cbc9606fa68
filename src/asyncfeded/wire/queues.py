"""The orders that wait for workers, on an ordered clock: those that are due first go first, and no worker idles beside them.

A worker whose own clients have all trained ahead of their turn takes the order of another worker's client. Results do not
depend on who trains a client, as long as the two compute alike.
"""

import heapq
from collections.abc import Callable, Sequence, Sized

from asyncfeded.wire.assignment import Assignment
from asyncfeded.wire.messages import PendingOrder


class Queues:
    """The orders that wait for each worker.

    Args:
        num_workers: number of workers.
        assignment: which worker each client lives on.
        alike: for each worker what its results may depend on: equal workers take from each other. Empty: none does.
        moved: is called with a client whose data another worker has to read first.
    """

    def __init__(
        self, num_workers: int, assignment: Assignment, alike: Sequence[object], moved: Callable[[int], object]
    ) -> None:
        self._assignment, self._alike, self._moved = assignment, alike, moved
        self._new = False
        self._heaps: list[list[PendingOrder]] = [[] for _ in range(num_workers)]
        self._visitors = [set[int]() for _ in range(num_workers)]  # of each worker: clients of others whose data it keeps

    def add(self, worker: int, pending: PendingOrder) -> None:
        """Let an order wait for a worker."""
        heapq.heappush(self._heaps[worker], pending)
        self._new = bool(self._alike)

    def idle(self, in_hand: Sequence[Sized]) -> list[int]:
        """The workers that are free, if orders were added since this was asked last; `in_hand`: the orders of each."""
        if not self._new:
            return []
        self._new, lost = False, self._assignment.lost
        return [worker for worker, orders in enumerate(in_hand) if not orders and worker not in lost]

    def clear(self, worker: int) -> list[PendingOrder]:
        """Take all orders that wait for a worker."""
        waiting, self._heaps[worker] = self._heaps[worker], []
        return waiting

    def pop(self, worker: int, leave: int = 0) -> PendingOrder | None:
        """Take the next order for a worker: of its own clients, or else of another worker's; None: no order.

        Args:
            worker: which.
            leave: so many orders are left to the others, who may be free before.
        """
        if leave and sum(map(len, self._heaps)) <= leave:
            return None
        if own := self._heaps[worker]:
            return heapq.heappop(own)
        if not self._alike:
            return None
        others = [(min(may), other) for other in range(len(self._heaps)) if (may := self._takeable(worker, other))]
        if not others:
            return None
        pending, other = min(others)
        self._heaps[other].remove(pending)
        heapq.heapify(self._heaps[other])
        if (client := pending.order.client) not in self._visitors[worker]:
            self._visitors[worker].add(client)
            self._moved(client)
        return pending

    def _takeable(self, worker: int, other: int) -> list[PendingOrder]:
        """The orders of another worker that this one may take: it keeps the data of no more visitors than of own clients."""
        if self._alike[worker] != self._alike[other]:
            return []
        if len(self._visitors[worker]) < self._assignment.clients_of(worker):
            return self._heaps[other][:1]  # the first is due first
        return [pending for pending in self._heaps[other] if pending.order.client in self._visitors[worker]]
