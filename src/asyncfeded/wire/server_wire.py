"""The server's side of the wire, over MPI: posted receives, a pool of buffers, replies in chunks, and workers that die.

messages.py describes the messages. This file does not know what an update means, and allocates nothing of model
size after start-up.
"""

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from asyncfeded.mpi import launcher
from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.waiting import Backoff
from asyncfeded.wire.assignment import Assignment
from asyncfeded.wire.deadlines import Deadlines
from asyncfeded.wire.in_hand import InHand
from asyncfeded.wire.messages import (
    BYE,
    EMPTY,
    FIELDS,
    GONE,
    HEADER,
    HEADER_TAG,
    LAST,
    RANKS_LOST,
    STOP,
    Arrival,
    Header,
    Incoming,
    Joined,
    Lost,
    Order,
    PendingOrder,
    Refused,
    flagged,
)
from asyncfeded.wire.queues import Queues
from asyncfeded.wire.transfer import CHUNK, Peer, Receiving, Sending

T = TypeVar("T")
STALLED_S = 50e-3
"""After a transfer has not moved for this long, another one may start beside it."""
WATCH_S = 0.1
"""Seconds between two looks for workers that have died."""


class ServerWire:
    """The server's side. It speaks with one rank of each worker.

    Each worker has one posted receive for its headers. Weights are received into a buffer of a pool, one update at a time;
    the next begins earlier only if one stalls, so that most buffers are never touched and take no memory. Updates are taken
    in the order in which their headers were seen: all workers are polled, earlier polls come first, and nobody starves.

    A worker is given up when MPI reports its death, or when it has been silent for too long. A worker that was only
    silent may come back: what it then sends is received and refused.

    Args:
        comm: the job's communicator.
        workers: whom to speak with, by worker.
        size: elements of a message: a model, and what is a client's own.
        backoff: how to wait.
        num_clients: number of clients, and of receive buffers.
        measure: called with (client, weights, start, stop) for every part of an update, in order, as soon as the part is
            here. Without it, on an ordered clock, an update may wait for its turn, and the next one is received meanwhile.
        start_s: what the clock shows at the start.
        deadlines: how long a worker may be silent. Without it: for ever.
        reassign: whether the clients of a worker that is given up move to other workers, with their orders.
        pinned: whether to receive into pinned memory, which a GPU reads itself.
        alike: which workers take clients of each other; see `Queues`.

    Attributes:
        receiving_s: processor time spent on receiving.
        assignment: which worker trains each client, and which workers are lost.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        workers: Sequence[Peer],
        size: int,
        backoff: Backoff,
        num_clients: int,
        measure: Callable[[int, Tensor, int, int], None] | None = None,
        start_s: float = 0.0,
        deadlines: Deadlines | None = None,
        reassign: bool = False,
        pinned: bool = False,
        alike: Sequence[object] = (),
    ) -> None:
        self._comm, self._workers, self._size, self._backoff, self._measure = comm, list(workers), size, backoff, measure
        num_workers = len(workers)
        self._deadlines, self.assignment = deadlines or Deadlines(0, 0), Assignment(num_workers, num_clients, reassign)
        self.assignment.absent.update(worker for worker, peer in enumerate(workers) if not peer.comm)
        self.assignment.lost |= self.assignment.absent
        # HEADER (workers,): row i belongs to MPI from Start() until the request has completed.
        self._headers = np.zeros(num_workers, HEADER)
        self._header_requests = [peer.listen(self._headers[i : i + 1], HEADER_TAG) for i, peer in enumerate(self._workers)]
        # float32 (size,) each: a buffer belongs to MPI while its update arrives, then to the arrival until `release`.
        self._buffers = [torch.empty(size, pin_memory=pinned) for _ in range(num_clients)]
        self._arrays = [buffer.numpy() for buffer in self._buffers]
        self._free, self._used = list(range(num_clients)), set[int]()  # the buffer used last is used next
        self._announced: list[tuple[int, Header]] = []  # header is here, no receive posted for weights
        self._incoming: list[Incoming] = []
        self._arrived: deque[Arrival | Refused | Lost | Joined] = deque()
        self._taken: dict[int, int] = {}  # client: buffer of its arrival
        self._num_received = [0] * num_workers  # messages of each worker; tags of chunks follow from it
        self._unsent, self._numbers = set[int](), itertools.count()  # unsent: workers whose chunks MPI could not take yet
        self._queues = Queues(num_workers, self.assignment, alike, self._deadlines.forget)  # orders not yet sent
        self._in_hand = InHand([self._may_have_two(peer) for peer in self._workers])
        self._sign_s = [0.0] * num_workers  # when each worker gave its last sign of life, in seconds of listening
        self._failed: dict[int, str] = {}  # by worker: the error that MPI gave for it
        self._left, self._stopping, self._stops = set[int](), False, dict[int, MPI.Request | None]()
        self._detects, self._group = launcher.detects_deaths(comm), comm.Get_group()
        self._ends = (*range(CHUNK, size, CHUNK), size)  # of a reply's parts
        self._start, self.receiving_s = time.perf_counter() - start_s, 0.0
        self._watched_s = self._moved_s = 0.0  # moved: when the last part arrived
        MPI.Prequest.Startall([request for request in self._header_requests if request])

    @property
    def ranks_lost(self) -> bool:
        """Whether ranks are lost, for which MPI_Finalize might wait for ever."""
        return self.assignment.lost != self.assignment.absent

    @property
    def buffer_bytes(self) -> int:
        """Memory of the receive buffers that were used, counted as at least one."""
        return 4 * self._size * max(1, len(self._used))

    def now(self) -> float:
        """See `Wire`: wall time since the wire was made, plus `start_s`."""
        return time.perf_counter() - self._start

    def next(self) -> Arrival | Refused | Lost | Joined | None:
        """See `Wire`. Rank 0."""
        for worker in self._completed():
            self._read(worker)
        if self._unsent:
            for worker in list(self._unsent):
                self._push(worker, self._size)
        if self._announced or self._incoming:
            self._receive()
        if self._deadlines.listen() - self._watched_s > WATCH_S or self._failed:
            self._watch()
        for worker in self._queues.idle(self._in_hand.orders):
            self._send_next(worker)
        if not self._arrived:
            return None
        event = self._arrived.popleft()
        if (self._announced or self._incoming or self._arrived) and isinstance(event, Arrival):
            return event._replace(queue=len(self._announced) + len(self._incoming) + len(self._arrived))
        return event

    def release(self, arrival: Arrival) -> None:
        """See `Wire`."""
        self._free.append(self._taken.pop(arrival.client))

    def reply(self, order: Order, weights: Tensor, ready: Callable[[int], object], due: float = 0.0) -> None:
        """See `Wire`. Rank 0. Of the orders that wait for workers, those with the least `due` go first."""
        worker, pending = self.assignment.of(order.client), PendingOrder(due, next(self._numbers), order, weights)
        if not self._in_hand.orders[worker]:
            self._send(worker, pending, ready)
        else:
            ready(self._size)
            self._queues.add(worker, pending)

    def pause(self) -> None:
        """See `Wire`."""
        self._backoff.pause()

    def stop(self) -> int:
        """See `Wire`. Rank 0. Afterwards the wire is closed, except for what is under way with lost workers."""
        self._stopping, discarded = True, 0
        for worker in range(len(self._workers)):
            self._queues.clear(worker)
            self._sign_s[worker] = self._deadlines.listened_s
            self._stops[worker] = self._flag(worker, STOP)
        while not (self._left | self.assignment.lost).issuperset(range(len(self._workers))):
            event = self.next()
            if event is None:
                self.pause()
            elif isinstance(event, Arrival):
                discarded += 1
                self.release(event)
        present = self._left - self.assignment.lost
        flags = BYE | RANKS_LOST if self.ranks_lost else BYE
        sent = [(worker, each.sent) for worker in present for each in self._in_hand.sending[worker] if each]
        requests = [(worker, request) for worker in present for request in (self._stops[worker], self._flag(worker, flags))]
        sent += [(worker, request.Test) for worker, request in requests if request]
        while not all(self._test(worker, is_sent) or worker in self._failed for worker, is_sent in sent):
            self.pause()
        for worker in present:
            self._header_requests[worker].Free()
        return discarded

    def _flag(self, worker: int, flags: int) -> MPI.Request | None:
        """Send a worker a header with only these flags, unless it is lost: MPICH crashed on a send to a cut-off host."""
        request = self._isend(worker, flagged(flags)) if worker not in self.assignment.lost else None
        self._workers[worker].ring()
        return request

    def _completed(self) -> list[int]:
        """Workers whose header has arrived."""
        try:
            return MPI.Request.Testsome(self._header_requests) or []
        except MPI.Exception:
            # MPI does not tell which requests completed in the same call. Their rows are written now, and were zero before.
            return [
                worker
                for worker, request in enumerate(self._header_requests)
                if self._test(worker, request.Test) and self._headers[worker].tobytes().strip(b"\0")
            ]

    def _read(self, worker: int) -> None:
        """Read a header: of an update that now follows, of something foreign, or the last one of a worker."""
        header = Header.read(self._headers, worker)
        self._headers[worker] = EMPTY
        self._num_received[worker] += 1
        self._sign_s[worker] = now = self._deadlines.listened_s
        pending = self._in_hand.first(worker)
        if header.foreign:  # it is unknown what follows it, if anything
            self._test(worker, self._header_requests[worker].Start)
            client = pending.order.client if pending and worker not in self.assignment.lost else -1
            self._arrived.append(Refused(client, f"{self._workers[worker].name} sent a header with {header.foreign}", False))
        elif header.flags & LAST:
            self._left.add(worker)
        elif header.flags & GONE:
            self._give_up(worker, f"{self._workers[worker].name} has left: a rank of its client has died", gone=True)
        else:
            if pending:
                self._deadlines.note(pending.order.client, pending.order.epochs, self._in_hand.answers(worker, now))
            self._announced.append((worker, header))

    def _receive(self) -> None:
        """Go on receiving what is arriving, and begin with the next update if nothing else moves."""
        began, cpu = time.perf_counter(), time.thread_time()
        moved = bool(self._incoming) and self._take_parts()
        arriving = [incoming.worker for incoming in self._incoming if incoming.worker not in self.assignment.lost]
        following = 0 if not moved and began - self._moved_s > STALLED_S else self._beside(arriving)
        if self._announced and self._free and following >= 0:
            (worker, header), slot = self._announced.pop(following), self._free.pop()
            self._used.add(slot)
            pending = self._in_hand.first(worker)
            refusal = pending.order.unanswered(header) if pending else f"it is a second answer, to round {header.round}"
            receiving = self._begin(worker, header.client, slot, not refusal)
            self._incoming.append(Incoming(worker, header, slot, receiving, refusal, began))
            self._test(worker, self._take_parts_of, self._incoming[-1])  # a small model is here already
            moved = True
        if moved:
            self._moved_s = time.perf_counter()
            self.receiving_s += time.thread_time() - cpu
            self._backoff.reset()

    def _beside(self, arriving: list[int]) -> int:
        """Which of the announced updates is received beside those of the workers that send; -1: none yet."""
        return -1 if arriving or (self._measure is not None and self._arrived) else 0

    def _begin(self, worker: int, client: int, slot: int, measured: bool) -> Receiving:
        """Post the first receives of an update."""
        return Receiving(self._workers[worker], self._arrays[slot], self._num_received[worker])

    def _take_parts(self) -> bool:
        """Take the parts of all updates that have arrived. Returns whether there were any."""
        return any([self._test(each.worker, self._take_parts_of, each) for each in self._incoming[:]])  # noqa: C419, all

    def _take_parts_of(self, incoming: Incoming) -> bool:
        """Take the parts of an update that have arrived. Returns whether there were any."""
        (worker, header, slot, receiving, refusal, _), moved = incoming, False
        while (part := receiving.poll()) is not None:
            moved = True
            self._sign_s[worker] = self._deadlines.listened_s
            if self._measure is not None and not refusal and worker not in self.assignment.lost:
                self._measure(header.client, self._buffers[slot], *part)
        # A worker that answers an order has received the whole order.
        if receiving.complete and self._in_hand.has_first(worker):
            self._incoming.remove(incoming)
            self._conclude(incoming)
        return moved

    def _conclude(self, incoming: Incoming) -> None:
        """Make an arrival, or a refusal, of an update that is completely here. Its worker may get the next order."""
        worker, header, slot, receiving, refusal, began_s = incoming
        pending, given_up = self._in_hand.answered(worker)
        self._test(worker, self._header_requests[worker].Start)
        refusal, client = refusal or receiving.fault, pending.order.client if pending else -1
        if given_up or worker in self.assignment.lost:
            refusal, client = "it came after its rank was given up", -1 if self.assignment.moving else client
        if worker in self.assignment.lost:
            self.assignment.lost.discard(worker)
            self.assignment.silent.discard(worker)
            if self._stopping:
                self._stops[worker] = self._flag(worker, STOP)
        if refusal:
            self._free.append(slot)
            self._arrived.append(Refused(client, f"{self._workers[worker].name} sent an update: {refusal}", True))
        else:
            self._taken[header.client] = slot
            self._arrived.append(header.arrival(self._buffers[slot], began_s))
        self._send_next(worker)

    def _may_have_two(self, peer: Peer) -> bool:
        """Whether a worker may have two orders in hand: on an ordered clock, if it is one rank and a model one message."""
        return self._measure is None and len(peer.group) == 1 and self._size <= CHUNK

    def _send_next(self, worker: int) -> None:
        """Send a worker the next of the orders that wait, if there is one for it; two, if it may have two."""
        while (leave := self._in_hand.leaves(worker)) is not None and (
            pending := self._queues.pop(worker, leave)
        ) is not None:
            self._send(worker, pending, int)  # the weights are ready

    def _send(self, worker: int, pending: PendingOrder, ready: Callable[[int], object]) -> None:
        """Send an order to a worker that has room for it."""
        now = self._deadlines.listened_s
        if not self._in_hand.orders[worker]:
            self._sign_s[worker] = now
        header = self._isend(worker, FIELDS.pack(*pending.order.fields))  # MPI's request keeps these bytes
        sending = Sending(self._workers[worker], pending.weights.numpy(), header) if header else None
        self._in_hand.give(worker, pending, sending, now)
        for stop in self._ends:
            ready(stop)
            self._push(worker, stop)

    def _push(self, worker: int, ready: int) -> None:
        """Go on sending a reply. Chunks that MPI cannot be given yet are left to the next poll."""
        sending, all_given = self._in_hand.sending[worker][-1], True  # the others are given
        if sending is not None and worker not in self._failed:
            given, all_given = sending.given, bool(self._test(worker, sending.push, ready))
            if sending.given > given:
                self._sign_s[worker] = self._deadlines.listened_s
                self._backoff.reset()
        (self._unsent.discard if all_given else self._unsent.add)(worker)

    def _test(self, worker: int, call: Callable[..., T], *arguments: object) -> T | None:
        """Make a call that concerns a worker. Returns None if MPI raises an error, which `_watch` then handles."""
        try:
            return call(*arguments)
        except MPI.Exception as error:
            self._failed.setdefault(worker, error.Get_error_string())
            return None

    def _isend(self, worker: int, row: np.ndarray | bytes) -> MPI.Request | None:
        peer = self._workers[worker]
        return self._test(worker, peer.comm.Isend, [row, MPI.BYTE], peer.rank, HEADER_TAG)

    def _watch(self) -> None:
        """Give up the workers that have died, or have been silent for too long."""
        self._watched_s = now = self._deadlines.listened_s
        for worker, error in self._failed.items():
            self._give_up(worker, f"MPI says of {self._workers[worker].name}: {error}", gone=True)
        self._failed.clear()
        if self._detects:
            failed = self._comm.Get_failed()
            dead = failed.Translate_ranks(range(failed.size), self._group) if failed.size else ()
            for worker, peer in enumerate(self._workers) if dead else ():
                if peer.comm == self._comm and (ended := set(peer.group).intersection(dead)):
                    self._give_up(worker, f"MPI reports that rank {min(ended)} has died", gone=True)
            failed.Free()
        for worker, _ in self._announced:  # these wait for the server
            self._sign_s[worker] = now
        for worker in range(len(self._workers)):
            pending, silent_s = self._in_hand.first(worker), now - self._sign_s[worker]
            if worker in self.assignment.lost or worker in self._left or not (pending or self._stopping):
                continue
            deadline_s = self._deadlines.deadline_s(pending.order.client, pending.order.epochs) if pending else math.inf
            if self._stopping and deadline_s == math.inf:
                deadline_s = self._deadlines.last_s
            if silent_s > deadline_s:
                allowed = f"{deadline_s:.1f} s are allowed (more with a larger faults.patience or faults.patience_s)"
                self._give_up(worker, f"{self._workers[worker].name} was silent for {silent_s:.1f} s, {allowed}")

    def _give_up(self, worker: int, reason: str, gone: bool = False) -> None:
        """Expect nothing more of a worker; if it has `gone`, it cannot come back either."""
        receiving = any(incoming.worker == worker for incoming in self._incoming)
        if gone:
            self.assignment.silent.discard(worker)
            self._incoming = [incoming for incoming in self._incoming if incoming.worker != worker]
            self._announced = [item for item in self._announced if item[0] != worker]
        if worker in self.assignment.lost:
            return
        self.assignment.lost.add(worker)
        if receiving:  # its buffer still belongs to MPI
            self._buffers.append(torch.empty_like(self._buffers[0]))
            self._arrays.append(self._buffers[-1].numpy())
            self._free.append(len(self._buffers) - 1)
        unanswered = [*self._queues.clear(worker), *self._in_hand.give_up(worker, gone)]
        if not gone:
            self.assignment.silent.add(worker)
        if self.assignment.can_move and not self._stopping:
            for pending in sorted(unanswered):
                self.reply(pending.order, pending.weights, int, pending.due)  # the weights are ready
        self._arrived.append(Lost(self._workers[worker].name, self.assignment.stranded(worker), reason))
