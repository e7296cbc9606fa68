"""Messages between server and clients: headers, weights, stops.

Clients train on workers, the ranks but the server's: client i on worker i modulo the number of workers, so that its data
lies on one rank. An update is a header (64 bytes) and the model's raw buffer in chunks (transfer.py); so is a reply. An
update is measured as it arrives, and a reply leaves as it is made. By turns:

1. The server replies to a client: header (round, version, K), weights. It does not touch that reply buffer until the
   client's next update: it *is* the client's base model x_s. A worker has one reply in hand at a time.
2. The worker trains K epochs and sends an update: header (base version, epochs done, ...), weights.
3. To end, the server sends a header with STOP to every worker, at any time. A worker answers with exactly one header with
   LAST, after the update that it may be sending. When all have, nothing is left unreceived.

Nothing is pickled, and nothing of model size is allocated after start-up. What an update means is not known here.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from asyncfeded.launcher import MPI
from asyncfeded.transfer import CHUNK, Receiving, Sending
from asyncfeded.world import PROTOCOL, Backoff

HEADER = np.dtype(
    [
        ("magic", np.uint32),
        ("protocol", np.uint16),
        ("flags", np.uint16),
        ("client", np.int32),
        ("epochs", np.int32),  # to a client: K, the epochs to train; from a client: epochs done
        ("round", np.int32),  # of this client: 0, 1, ...
        ("steps", np.int32),  # steps of SGD done
        ("version", np.int64),  # to a client: of the model sent; from a client: of the model it started from
        ("samples", np.int64),  # samples seen
        ("train_loss", np.float64),  # mean over the samples seen
        ("compute_s", np.float64),  # of this round
        ("wait_s", np.float64),  # between the previous update and its reply
    ]
)
MAGIC = 0xA5F3DED0
STOP, LAST = 1, 2  # flags
HEADER_TAG = 1
NOTHING = (-1, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0)  # the fields of a header that only carries a flag
BULK_S = 20e-6
"""How long a client that would spin sleeps between two looks at an update of several chunks: it is the server that moves the
data, and its second thread can use the core."""
STALLED_S = 50e-3
"""A transfer that has not moved for so long does not keep another from starting."""


class Header(NamedTuple):
    """The fields of a header that has arrived, as HEADER names them."""

    magic: int
    protocol: int
    flags: int
    client: int
    epochs: int
    round: int
    steps: int
    version: int
    samples: int
    train_loss: float
    compute_s: float
    wait_s: float


class Order(NamedTuple):
    """What the server asks of a client, together with the weights of that version."""

    client: int
    round: int
    """How many rounds the client has been asked for before."""
    version: int
    epochs: int
    """K."""


class Arrival(NamedTuple):
    """An update that has arrived whole."""

    client: int
    round: int
    base_version: int
    epochs: int
    samples: int
    steps: int
    train_loss: float
    compute_s: float
    wait_s: float
    weights: Tensor
    """float32 (size,), in a receive buffer of the wire, until `release`."""
    queue: int = 0
    """Other updates that had come, their headers at least, and were not taken yet when this one was."""


class Wire(Protocol):
    """What the server needs of its wire. `ServerWire` is the one over MPI."""

    def next(self) -> Arrival | None:
        """The update that has waited longest, or None if none has arrived. Never waits."""

    def release(self, arrival: Arrival) -> None:
        """The arrival's weights have been read: their buffer may take the next update."""

    def reply(self, order: Order, weights: Tensor, ready: Callable[[int], object]) -> None:
        """Give a client an order and the model for it.

        Args:
            order: what to do.
            weights: float32 (size,); belongs to the wire until the client's next update arrives.
            ready: makes `weights[:stop]` what is to be sent; called with a rising `stop`, last with size, before this
                returns.
        """

    def now(self) -> float:
        """Seconds of training, on the clock of the run."""

    def pause(self) -> None:
        """Let others run, since there is nothing to do."""

    def stop(self) -> int:
        """Tell all to stop, receive what is under way, and return how many updates that discarded."""


class Incoming(NamedTuple):
    """An update that is being received."""

    worker: int
    header: Header
    slot: int
    """Index of its buffer."""
    receiving: Receiving


class ServerWire:
    """The server's side, over MPI. Worker i is rank i + 1.

    Headers are received into one posted receive per worker; weights into a buffer of a pool, one update at a time, the
    next one beginning before the last has arrived only if that stalls: so most buffers are never touched, and the system
    gives them no memory. Updates are taken in the order in which their headers were seen: a poll looks at all, and who
    came with an earlier poll is first, so that no rank starves another.

    Args:
        comm: the job's communicator; this is rank 0.
        num_workers: number of workers.
        size: elements of a model.
        backoff: how to wait.
        pool: number of receive buffers.
        measure: told of every part of an update, in order, as soon as it is here: client, weights, start, stop. Without it
            an update may wait for its turn, and the next is received meanwhile.
        start_s: of the clock.

    Attributes:
        receiving_s: processor time spent on receiving.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        num_workers: int,
        size: int,
        backoff: Backoff,
        pool: int,
        measure: Callable[[int, Tensor, int, int], None] | None = None,
        start_s: float = 0.0,
    ) -> None:
        self._comm, self._size, self._backoff, self._measure = comm, size, backoff, measure
        # HEADER (workers,): row i belongs to MPI from Start() until the request has completed.
        self._headers = np.zeros(num_workers, HEADER)
        self._header_requests = [
            comm.Recv_init([self._headers[i : i + 1].view(np.uint8), MPI.BYTE], i + 1, HEADER_TAG)
            for i in range(num_workers)
        ]
        # float32 (size,) each: a buffer belongs to MPI while its update arrives, then to the arrival until `release`.
        self._buffers = [torch.empty(size) for _ in range(pool)]
        self._arrays = [buffer.numpy() for buffer in self._buffers]
        self._free = list(range(pool))  # the last one used is used next
        self._used: set[int] = set()
        self._announced: deque[tuple[int, Header]] = deque()  # workers whose header is here, their weights not posted
        self._incoming: list[Incoming] = []
        self._moved_s = 0.0  # when the last part arrived
        self._arrived: deque[Incoming] = deque()
        self._taken: dict[int, int] = {}  # client: buffer of its arrival
        # HEADER (workers,): rows are sent from, and rewritten only after the worker's next update.
        self._replies = np.zeros(num_workers, HEADER)
        self._reply_rows = [self._replies[i : i + 1].view(np.uint8) for i in range(num_workers)]
        self._stops = np.zeros(num_workers, HEADER)
        self._outgoing: list[Sending | None] = [None] * num_workers
        self._unsent: set[int] = set()  # workers with chunks that could not be given to MPI yet
        self._left = 0
        self.receiving_s = 0.0
        self._start = time.perf_counter() - start_s
        MPI.Prequest.Startall(self._header_requests)

    @property
    def buffer_bytes(self) -> int:
        """Memory of the receive buffers that were used, at least one."""
        return 4 * self._size * max(1, len(self._used))

    @property
    def num_workers(self) -> int:
        """Number of workers."""
        return len(self._outgoing)

    def now(self) -> float:
        """See `Wire`: wall time since the wire was made, and what had passed before."""
        return time.perf_counter() - self._start

    def next(self) -> Arrival | None:
        """See `Wire`. Rank 0."""
        for worker in MPI.Request.Testsome(self._header_requests) or ():
            header = Header(*self._headers[worker].item())
            self._check(worker, header)
            if header.flags & LAST:
                self._left += 1
            else:
                self._announced.append((worker, header))
        for worker in list(self._unsent):
            self._push(worker, self._size)
        if self._announced or self._incoming:
            self._receive()
        if not self._arrived:
            return None
        incoming = self._arrived.popleft()
        worker, slot, header = incoming.worker, incoming.slot, incoming.header
        while (replied := self._outgoing[worker]) is not None and not replied.sent():
            pass  # it is: the worker has answered the reply
        self._header_requests[worker].Start()
        self._taken[header.client] = slot
        queue = len(self._announced) + len(self._incoming) + len(self._arrived)
        figures = (header.epochs, header.samples, header.steps, header.train_loss, header.compute_s, header.wait_s)
        return Arrival(header.client, header.round, header.version, *figures, self._buffers[slot], queue)

    def release(self, arrival: Arrival) -> None:
        """See `Wire`. Rank 0."""
        self._free.append(self._taken.pop(arrival.client))

    def reply(self, order: Order, weights: Tensor, ready: Callable[[int], object]) -> None:
        """See `Wire`. Rank 0."""
        worker = order.client % len(self._outgoing)
        fields = (order.client, order.epochs, order.round, 0, order.version, 0, 0.0, 0.0, 0.0)
        self._replies[worker] = (MAGIC, PROTOCOL, 0, *fields)
        header = self._comm.Isend([self._reply_rows[worker], MPI.BYTE], worker + 1, HEADER_TAG)
        self._outgoing[worker] = Sending(self._comm, weights.numpy(), worker + 1, header)
        for start in range(0, self._size, CHUNK):
            stop = min(start + CHUNK, self._size)
            ready(stop)
            self._push(worker, stop)

    def pause(self) -> None:
        """See `Wire`."""
        self._backoff.pause()

    def stop(self) -> int:
        """See `Wire`. Rank 0; afterwards the wire is closed."""
        discarded, stops = 0, []
        for worker in range(len(self._outgoing)):
            self._stops[worker] = (MAGIC, PROTOCOL, STOP, *NOTHING)
            row = self._stops[worker : worker + 1].view(np.uint8)
            stops.append(self._comm.Isend([row, MPI.BYTE], worker + 1, HEADER_TAG))
        while self._left < len(self._outgoing):
            arrival = self.next()
            if arrival is None:
                self.pause()
            else:
                discarded += 1
                self.release(arrival)
        MPI.Request.Waitall(stops)
        while not all(sending.sent() for sending in self._outgoing if sending):
            pass  # all workers have left, so that they have received it
        for request in self._header_requests:
            request.Free()
        return discarded

    def _receive(self) -> None:
        """Carry on with what is arriving, and begin the next update if nothing else moves."""
        began, cpu = time.perf_counter(), time.thread_time()
        moved = self._take_parts()
        waits = self._incoming or (self._measure is not None and self._arrived)
        if self._announced and self._free and (not waits or (not moved and began - self._moved_s > STALLED_S)):
            (worker, header), slot = self._announced.popleft(), self._free.pop()
            self._used.add(slot)
            self._incoming.append(Incoming(worker, header, slot, Receiving(self._comm, self._arrays[slot], worker + 1)))
            self._take_parts()  # a small model is here already
            moved = True
        if moved:
            self._moved_s = time.perf_counter()
            self.receiving_s += time.thread_time() - cpu
            self._backoff.reset()

    def _take_parts(self) -> bool:
        """Take what has arrived of all updates. Returns whether that was anything."""
        moved = False
        for incoming in list(self._incoming):
            while (part := incoming.receiving.poll()) is not None:
                moved = True
                if self._measure is not None:
                    self._measure(incoming.header.client, self._buffers[incoming.slot], *part)
            if incoming.receiving.complete:
                self._incoming.remove(incoming)
                self._arrived.append(incoming)
        return moved

    def _push(self, worker: int, ready: int) -> None:
        """Go on sending a reply; what cannot be given to MPI yet is left to the next poll."""
        sending = self._outgoing[worker]
        assert sending is not None
        given = sending.given
        all_given = sending.push(ready)
        if sending.given > given:
            self._backoff.reset()
        if all_given:
            self._unsent.discard(worker)
        else:
            self._unsent.add(worker)

    def _check(self, worker: int, header: Header) -> None:
        own = header.client == NOTHING[0] or header.client % len(self._outgoing) == worker
        if header.magic != MAGIC or header.protocol != PROTOCOL or not own:
            raise RuntimeError(
                f"worker {worker} sent a header that is not of this protocol, or not of its clients: {header}; expected "
                f"magic {MAGIC:#x}, protocol {PROTOCOL}, and a client that is {worker} modulo {len(self._outgoing)}"
            )


class ClientWire:
    """A worker's side, over MPI; the server is rank 0.

    Args:
        comm: the job's communicator.
        buffer: float32 (size,) in host memory, to receive into and to send from; belongs to MPI inside `receive` and
            `send`, to the caller between them.
        backoff: how to wait.
    """

    def __init__(self, comm: MPI.Intracomm, buffer: Tensor, backoff: Backoff) -> None:
        self._comm, self._backoff = comm, backoff
        self._buffer = buffer.numpy()
        self._inbox, self._outbox = np.zeros(1, HEADER), np.zeros(1, HEADER)
        # Posted whenever no header is being read: while the worker trains, only a STOP can complete it.
        self._request = comm.Recv_init([self._inbox.view(np.uint8), MPI.BYTE], 0, HEADER_TAG)
        self._request.Start()

    def receive(self) -> Order | None:
        """Wait for the server's next word: an order, or None to stop. Client ranks."""
        self._backoff.wait(self._request)
        _, _, flags, client, epochs, number, _, version, *_ = self._inbox[0].item()
        if flags & STOP:
            return None
        receiving = Receiving(self._comm, self._buffer, 0)
        while not receiving.complete:
            if receiving.poll() is None:
                self._backoff.pause()
            else:
                self._backoff.reset()
        self._request.Start()
        return Order(client, number, version, epochs)

    def stopped(self) -> bool:
        """Whether the server has called for a stop; for use while training. Never waits. Client ranks."""
        return self._request.Test()

    def send(self, order: Order, samples: int, steps: int, train_loss: float, compute_s: float, wait_s: float) -> None:
        """Send the update that an order asked for, the weights being in the buffer. Client ranks.

        Returns when the buffer may be written.
        """
        fields = (order.client, order.epochs, order.round, steps, order.version, samples, train_loss, compute_s, wait_s)
        self._outbox[0] = (MAGIC, PROTOCOL, 0, *fields)
        header = self._comm.Isend([self._outbox.view(np.uint8), MPI.BYTE], 0, HEADER_TAG)
        sending, size, given = Sending(self._comm, self._buffer, 0, header), len(self._buffer), 0
        while not (sending.push(size) and sending.sent()):
            if sending.given > given:
                given = sending.given
                self._backoff.reset()
            elif self._backoff.spin and size > CHUNK:
                time.sleep(BULK_S)
            else:
                self._backoff.pause()

    def finish(self) -> None:
        """Answer a stop; afterwards the wire is closed. Client ranks."""
        self._outbox[0] = (MAGIC, PROTOCOL, LAST, *NOTHING)
        self._backoff.wait(self._comm.Isend([self._outbox.view(np.uint8), MPI.BYTE], 0, HEADER_TAG))
        self._request.Free()
