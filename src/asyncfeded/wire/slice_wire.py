"""The wires of a server of several ranks: that of rank 0, which says what is next, and that of the others, who hear it.

Each of them moves its slice of an update, and of a reply, between itself and the worker. Between two events all clocks show
the same, so that all ranks decide the same.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from asyncfeded.model.disk import Disk
from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.waiting import Backoff
from asyncfeded.wire.deadlines import Deadlines
from asyncfeded.wire.messages import Arrival, Joined, Lost, Order, PendingOrder, Refused, Stuck, Wire
from asyncfeded.wire.server_ranks import ServerRanks, What, Word
from asyncfeded.wire.server_wire import ServerWire
from asyncfeded.wire.transfer import Peer, Receiving, Sending


class FirstSliceWire(ServerWire):
    """A `ServerWire` for the first slice: other ranks receive and send theirs when it says so.

    As many updates arrive side by side as there are slices, since the link of one worker would fill a part of each server
    rank's. They come from different hosts: two of one host would share its link, and end together.

    Attributes:
        ranks: all ranks of the server; it must be set before the first message, and so must `hosts`.
        hosts: the host of each worker.
    """

    ranks: ServerRanks
    hosts: Sequence[str]

    def _beside(self, arriving: list[int]) -> int:
        if len(arriving) + len(self._taken) >= sum(each.size > 0 for each in self.ranks.slices):
            return -1
        return of_another_host([worker for worker, _ in self._announced], arriving, self.hosts)

    def _may_have_two(self, peer: Peer) -> bool:
        return False  # the other ranks send one reply to a worker at a time

    def slot(self, client: int) -> int:
        """The buffer that a client's arrival lies in."""
        return self._taken[client]

    def _begin(self, worker: int, client: int, slot: int, measured: bool) -> Receiving:
        number = self._num_received[worker]
        self.ranks.say(What.RECEIVE, worker=worker, client=client, slot=slot, flag=measured, number=number)
        return ReceivingSlices(self.ranks, worker, number, self._workers[worker], self._arrays[slot])

    def _watch(self) -> None:
        """A worker gives a sign of life also when it moves something to or from another server rank."""
        for worker in self.ranks.moved:
            self._sign_s[worker] = self._deadlines.listened_s
        self.ranks.moved.clear()
        super()._watch()

    def _send(self, worker: int, pending: PendingOrder, ready: Callable[[int], object]) -> None:
        self.ranks.say(What.REPLY, worker=worker, client=pending.order.client)
        super()._send(worker, pending, ready)


class SharedDeadlines(Deadlines):
    """As `Deadlines`; only the time in which all server ranks were listening counts.

    Args:
        ranks: they themselves; this is rank 0.
        patience: how many times the spread.
        least_s: the shortest deadline.
    """

    def __init__(self, ranks: ServerRanks, patience: float, least_s: float) -> None:
        super().__init__(patience, least_s)
        self._ranks = ranks

    def listen(self) -> float:
        """See `Deadlines`."""
        return super().listen() if self._ranks.listen() else self.listened_s


def of_another_host(waiting: Sequence[int], arriving: Sequence[int], hosts: Sequence[str]) -> int:
    """Index of the worker whose update is next: the first that waits on a host that sends none; -1 if there is none.

    Args:
        waiting: workers, those first that have waited longest.
        arriving: workers that send.
        hosts: by worker.
    """
    busy = {hosts[worker] for worker in arriving}
    return next((index for index, worker in enumerate(waiting) if hosts[worker] not in busy), -1)


class ReceivingSlices(Receiving):
    """An update whose slices are being received. It is complete when every server rank has its own."""

    def __init__(self, ranks: ServerRanks, worker: int, number: int, source: Peer, weights: np.ndarray) -> None:
        super().__init__(source, weights, number)
        self._ranks, self._message, self._everywhere = ranks, (worker, number), False

    @property
    def complete(self) -> bool:
        """Whether all of it is here, on every server rank."""
        return self._everywhere

    def poll(self) -> tuple[int, int] | None:
        """See `Receiving`: of the first slice."""
        part = super().poll()
        if not self._everywhere and super().complete and self._ranks.is_everywhere(*self._message):
            self._everywhere, self.fault = True, self.fault or self._ranks.fault(*self._message)
        return part


class LeadingWire:
    """The `Wire` of rank 0: it passes on what comes from the wire below, and says it to the other server ranks.

    Args:
        below: the wire below.
        ranks: all ranks of the server.
        workers: the wire to the workers, below that.
    """

    def __init__(self, below: Wire, ranks: ServerRanks, workers: FirstSliceWire) -> None:
        self._below, self._ranks, self._workers = below, ranks, workers
        self._now = below.now()

    def now(self) -> float:
        """See `Wire`: what the clock below showed at the last call of `next`."""
        return self._now

    def next(self) -> Arrival | Refused | Lost | Joined | Stuck | None:
        """See `Wire`. Rank 0. Nobody joins a run whose server has several ranks."""
        event = self._below.next()
        self._now = self._below.now()
        if isinstance(event, Arrival | Refused | Lost):
            self._ranks.say_event(event, self._now, self._workers.slot(event.client) if isinstance(event, Arrival) else -1)
        return event

    def release(self, arrival: Arrival) -> None:
        """See `Wire`."""
        self._below.release(arrival)

    def reply(self, order: Order, weights: Tensor, ready: Callable[[int], object]) -> None:
        """See `Wire`."""
        self._below.reply(order, weights, ready)

    def pause(self) -> None:
        """See `Wire`."""
        self._below.pause()

    def stop(self) -> int:
        """See `Wire`. Rank 0."""
        discarded = self._below.stop()
        self._ranks.say(What.END, flag=self._workers.ranks_lost)
        self._ranks.close()
        return discarded


class SliceKeeper(Protocol):
    """Writes the slices of checkpoints of a server rank other than rank 0."""

    def begin(self, number: int) -> None:
        """Begin to write the slice of the checkpoint of this number, as the state is now."""

    def poll(self) -> None:
        """Tell rank 0 of a slice that was written. Never waits."""

    def finish(self) -> None:
        """Wait until the slice under way is written, and tell rank 0."""


class SliceWire:
    """The `Wire` of the other server ranks: it does what rank 0 says.

    Args:
        ranks: all ranks of the server.
        workers: whom to speak with, by worker.
        backoff: how to wait.
        measure: as for `ServerWire`.
        x: gives this rank's slice of the global model.
        keeper: writes this rank's slice of checkpoints.
        disk: where the replies lie; None: in memory.
        start_s: what the clock shows at the start.
        pinned: whether to receive into pinned memory.

    Attributes:
        ended: whether rank 0 has closed its wire.
        ranks_lost: whether rank 0 said at the end that a rank is lost.
        score: the values of the evaluation that rank 0 told of last, until they are read.
    """

    def __init__(
        self,
        ranks: ServerRanks,
        workers: Sequence[Peer],
        backoff: Backoff,
        measure: Callable[[int, Tensor, int, int], None] | None,
        x: Callable[[], Tensor],
        keeper: SliceKeeper | None = None,
        disk: Disk | None = None,
        start_s: float = 0.0,
        pinned: bool = False,
    ) -> None:
        self._ranks, self._workers, self._backoff, self._measure, self._x = ranks, list(workers), backoff, measure, x
        self._keeper, self._disk = keeper, disk
        self._size, self._now, self._pinned = ranks.mine.size, start_s, pinned
        self._buffers: dict[int, Tensor] = {}  # by slot
        self._replies: dict[int, np.ndarray] = {}  # by client: what it is sent next
        self._incoming: list[tuple[Word, Receiving]] = []
        self._outgoing: dict[int, Sending] = {}  # by worker
        self._moved = set[int]()  # workers with which something has moved since rank 0 asked
        self.ended = self.ranks_lost = False
        self.score: np.ndarray | None = None

    def now(self) -> float:
        """See `Wire`: what rank 0 said last."""
        return self._now

    def next(self) -> Arrival | Refused | Lost | Stuck | None:
        """See `Wire`. Server ranks except rank 0."""
        self._move()
        if self.ended:
            return Stuck("rank 0 has ended the training")  # for a reason that it alone knows, such as a signal
        while not self.ended and (word := self._ranks.hear()) is not None:
            self._backoff.reset()
            if (event := self._do(word)) is not None:
                return event
            if word.what is What.SCORE:
                break
        return None

    def release(self, arrival: Arrival) -> None:
        """See `Wire`: rank 0 says when a buffer is used again."""

    def reply(self, order: Order, weights: Tensor, ready: Callable[[int], object]) -> None:
        """See `Wire`. It is sent when rank 0 has sent the header."""
        ready(self._size)
        self._replies[order.client] = weights.numpy()
        if self._disk:
            self._disk.put_away(weights)  # rank 0 may not send it for long

    def pause(self) -> None:
        """See `Wire`."""
        self._backoff.pause()

    def stop(self) -> int:
        """See `Wire`: do what rank 0 says, until it has closed its wire. Server ranks except rank 0."""
        while not self.ended:
            if self.next() is None:
                self.pause()
        if self._keeper:
            self._keeper.finish()
        self._ranks.close()
        return 0

    def _do(self, word: Word) -> Arrival | Refused | Lost | None:
        """Do what rank 0 says. Returns the event that it is, if it is one."""
        what, fields, behind = word
        if "now" in fields and what in (What.TAKE, What.REFUSE, What.LOSE):
            self._now = float(fields["now"])
        client, worker, slot = (int(fields[name]) for name in ("client", "worker", "slot"))
        if what is What.RECEIVE:
            if slot not in self._buffers:
                self._buffers[slot] = torch.empty(self._size, pin_memory=self._pinned)
            for earlier, _ in self._incoming:
                if earlier.fields["client"] == client:  # of a worker that was given up
                    earlier.fields["flag"] = False
            receiving = Receiving(self._workers[worker], self._buffers[slot].numpy(), int(fields["number"]))
            self._incoming.append((word, receiving))
            self._move()
        elif what is What.REPLY:
            self._outgoing[worker] = Sending(self._workers[worker], self._replies[client])  # again if the client moves
            self._move()
        elif what is What.COLLECT:
            self._ranks.give(self._x())
        elif what is What.SCORE:
            self.score = behind
        elif what is What.CHECKPOINT and self._keeper:
            self._keeper.begin(int(fields["number"]))
        elif what is What.ASK:
            self._ranks.answer(self._moved)
            self._moved.clear()
        elif what is What.END:
            self.ended, self.ranks_lost = True, bool(fields["flag"])
        elif what is What.TAKE:
            asked = (client, int(fields["round"]), int(fields["version"]), int(fields["epochs"]))
            done = (int(fields["samples"]), int(fields["steps"]))
            figures = (float(fields["train_loss"]), float(fields["compute_s"]), float(fields["wait_s"]))
            measured = float(fields["measured"])
            return Arrival(*asked, *done, *figures, self._buffers[slot], measured=measured)
        elif what is What.REFUSE:
            return Refused(client, "", bool(fields["flag"]))
        elif what is What.LOSE:
            return Lost("", tuple(int(each) for each in behind), "")
        return None

    def _move(self) -> None:
        """Take the parts that have arrived, and go on sending."""
        if self._keeper:
            self._keeper.poll()
        for word, receiving in list(self._incoming):
            worker, client, slot, number = (int(word.fields[name]) for name in ("worker", "client", "slot", "number"))
            try:
                while (part := receiving.poll()) is not None:
                    self._backoff.reset()
                    self._moved.add(worker)
                    if self._measure is not None and word.fields["flag"]:
                        self._measure(client, self._buffers[slot], *part)
            except MPI.Exception:  # the worker has died: rank 0 gives it up
                self._incoming.remove((word, receiving))
                continue
            if receiving.complete:
                self._incoming.remove((word, receiving))
                self._ranks.tell_here(worker, number, receiving.fault)
        for worker, sending in list(self._outgoing.items()):
            try:
                given, sent = sending.given, sending.go_on()
                if sending.given > given:
                    self._backoff.reset()
                    self._moved.add(worker)
            except MPI.Exception:
                sent = True
            if sent:
                del self._outgoing[worker]
