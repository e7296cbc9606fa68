"""Messages between server and clients: headers, weights, stops.

An update is a header (64 bytes) and, as a second message, the model's raw buffer; so is a reply. The protocol, by turns:

1. The server replies to a client: header (version, K), weights. It does not touch that reply buffer until the client's
   next update: it *is* the client's base model x_s.
2. The client trains K epochs and sends an update: header (base version, epochs done, ...), weights.
3. To end, the server sends a header with STOP to every client, at any time. A client answers with exactly one header with
   LAST, after the update that it may be sending. When all have, nothing is left unreceived.

Nothing is pickled, and nothing of model size is allocated after start-up. What an update means is not known here.
"""

from collections import deque
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from asyncfeded.launcher import MPI
from asyncfeded.world import PROTOCOL, Backoff

HEADER = np.dtype(
    [
        ("magic", np.uint32),
        ("protocol", np.uint16),
        ("flags", np.uint16),
        ("client", np.int32),
        ("epochs", np.int32),  # to a client: K, the epochs to train; from a client: epochs done
        ("version", np.int64),  # to a client: of the model sent; from a client: of the model it started from
        ("samples", np.int64),  # samples seen
        ("steps", np.int64),  # steps of SGD done
        ("train_loss", np.float64),  # mean over the samples seen
        ("compute_s", np.float64),  # of this round
        ("wait_s", np.float64),  # between the previous update and its reply
    ]
)
MAGIC = 0xA5F3DED0
STOP, LAST = 1, 2  # flags
HEADER_TAG, WEIGHTS_TAG = 1, 2


class Arrival(NamedTuple):
    """An update that has arrived whole."""

    client: int
    base_version: int
    epochs: int
    samples: int
    steps: int
    train_loss: float
    compute_s: float
    wait_s: float
    weights: Tensor
    """float32 (size,), in a receive buffer of the wire, until `release`."""


class Wire(Protocol):
    """What the server needs of its wire. `ServerWire` is the one over MPI."""

    def next(self) -> Arrival | None:
        """The update that has waited longest, or None if none has arrived. Never waits."""

    def release(self, arrival: Arrival) -> None:
        """The arrival's weights have been read: their buffer may take the next update."""

    def reply(self, client: int, version: int, epochs: int, weights: Tensor) -> None:
        """Send a client the model of a version, to train for K = `epochs`.

        `weights` belongs to the wire until the client's next update arrives.
        """

    def pause(self) -> None:
        """Let others run, since there is nothing to do."""

    def stop(self) -> int:
        """Tell every client to stop, receive what is under way, and return how many updates that discarded."""


class ServerWire:
    """The server's side, over MPI. Client i is rank i + 1.

    Headers are received into one posted receive per client; weights into a buffer of a small pool, posted when the header
    is there. Clients are taken in the order in which their headers were seen: a poll looks at all, and who came with an
    earlier poll is first, so that no rank starves another.

    Args:
        comm: the job's communicator; this is rank 0.
        num_clients: number of clients.
        size: elements of a model.
        backoff: how to wait.
        pool: number of receive buffers.
    """

    def __init__(self, comm: MPI.Intracomm, num_clients: int, size: int, backoff: Backoff, pool: int = 2) -> None:
        self._comm, self._backoff = comm, backoff
        # HEADER (clients,): row i belongs to MPI from Start() until the request has completed.
        self._headers = np.zeros(num_clients, HEADER)
        self._header_requests = [
            comm.Recv_init([self._headers[i : i + 1].view(np.uint8), MPI.BYTE], i + 1, HEADER_TAG)
            for i in range(num_clients)
        ]
        # float32 (size,) each: a buffer belongs to MPI while its request is active, then to the arrival until `release`.
        self._buffers = [torch.empty(size) for _ in range(min(pool, num_clients))]
        self._requests: list[MPI.Request] = [MPI.REQUEST_NULL] * len(self._buffers)
        self._client_of = [-1] * len(self._buffers)
        self._turn, self._turns = [0] * len(self._buffers), 0  # in which order the buffers were posted
        self._free = deque(range(len(self._buffers)))
        self._announced: deque[int] = deque()  # clients whose header is here and whose weights are not posted
        self._arrived: deque[int] = deque()  # buffers that hold an update
        # HEADER (clients,): rows are sent from, and rewritten only after the client's next update.
        self._replies = np.zeros(num_clients, HEADER)
        self._stops = np.zeros(num_clients, HEADER)
        self._sends: list[list[MPI.Request]] = [[] for _ in range(num_clients)]
        self._left = 0
        MPI.Prequest.Startall(self._header_requests)

    @property
    def buffer_bytes(self) -> int:
        """Memory of the receive buffers."""
        return sum(4 * b.numel() for b in self._buffers)

    def next(self) -> Arrival | None:
        """See `Wire`. Rank 0."""
        for client in MPI.Request.Testsome(self._header_requests) or ():
            if self._headers["flags"][client] & LAST:
                self._left += 1
            else:
                self._announced.append(client)
        while self._announced and self._free:
            client, slot = self._announced.popleft(), self._free.popleft()
            self._client_of[slot] = client
            self._turn[slot] = self._turns = self._turns + 1
            self._requests[slot] = self._comm.Irecv([self._buffers[slot].numpy(), MPI.FLOAT], client + 1, WEIGHTS_TAG)
        self._arrived.extend(sorted(MPI.Request.Testsome(self._requests) or (), key=self._turn.__getitem__))
        if not self._arrived:
            return None
        self._backoff.reset()
        slot = self._arrived.popleft()
        client = self._client_of[slot]
        MPI.Request.Waitall(self._sends[client])  # complete: the client has answered the reply
        _, _, _, _, epochs, version, samples, steps, loss, compute_s, wait_s = self._headers[client].item()
        return Arrival(client, version, epochs, samples, steps, loss, compute_s, wait_s, self._buffers[slot])

    def release(self, arrival: Arrival) -> None:
        """See `Wire`. Rank 0."""
        self._free.append(self._client_of.index(arrival.client))
        self._client_of[self._free[-1]] = -1
        self._header_requests[arrival.client].Start()

    def reply(self, client: int, version: int, epochs: int, weights: Tensor) -> None:
        """See `Wire`. Rank 0."""
        self._replies[client] = (MAGIC, PROTOCOL, 0, client, epochs, version, 0, 0, 0.0, 0.0, 0.0)
        self._sends[client] = [
            self._comm.Isend([self._replies[client : client + 1].view(np.uint8), MPI.BYTE], client + 1, HEADER_TAG),
            self._comm.Isend([weights.numpy(), MPI.FLOAT], client + 1, WEIGHTS_TAG),
        ]

    def pause(self) -> None:
        """See `Wire`."""
        self._backoff.pause()

    def stop(self) -> int:
        """See `Wire`. Rank 0; afterwards the wire is closed."""
        discarded = 0
        for client, sends in enumerate(self._sends):
            self._stops[client] = (MAGIC, PROTOCOL, STOP, client, 0, 0, 0, 0, 0.0, 0.0, 0.0)
            row = self._stops[client : client + 1].view(np.uint8)
            sends.append(self._comm.Isend([row, MPI.BYTE], client + 1, HEADER_TAG))
        while self._left < len(self._sends):
            arrival = self.next()
            if arrival is None:
                self.pause()
            else:
                discarded += 1
                self.release(arrival)
        for sends in self._sends:
            MPI.Request.Waitall(sends)
        for request in self._header_requests:
            request.Free()
        return discarded


class Order(NamedTuple):
    """What the server asks of a client, with the weights of that version in the client's buffer."""

    version: int
    epochs: int


class ClientWire:
    """A client's side, over MPI; the server is rank 0.

    Args:
        comm: the job's communicator.
        client: this client's id.
        buffer: float32 (size,) in host memory, to receive into and to send from; belongs to MPI inside `receive` and
            `send`, to the caller between them.
        backoff: how to wait.
    """

    def __init__(self, comm: MPI.Intracomm, client: int, buffer: Tensor, backoff: Backoff) -> None:
        self._comm, self._client, self._backoff = comm, client, backoff
        self._buffer = buffer.numpy()
        self._inbox, self._outbox = np.zeros(1, HEADER), np.zeros(1, HEADER)
        # Posted whenever no header is being read: while the client trains, only a STOP can complete it.
        self._request = comm.Recv_init([self._inbox.view(np.uint8), MPI.BYTE], 0, HEADER_TAG)
        self._request.Start()

    def receive(self) -> Order | None:
        """Wait for the server's next word: an order, or None to stop. Client ranks."""
        self._backoff.wait(self._request)
        if self._inbox["flags"][0] & STOP:
            return None
        self._backoff.wait(self._comm.Irecv([self._buffer, MPI.FLOAT], 0, WEIGHTS_TAG))
        order = Order(int(self._inbox["version"][0]), int(self._inbox["epochs"][0]))
        self._request.Start()
        return order

    def stopped(self) -> bool:
        """Whether the server has called for a stop; for use while training. Never waits. Client ranks."""
        return self._request.Test()

    def send(
        self, version: int, epochs: int, samples: int, steps: int, train_loss: float, compute_s: float, wait_s: float
    ) -> None:
        """Send an update, the weights being in the buffer; returns when the buffer may be written. Client ranks."""
        fields = (epochs, version, samples, steps, train_loss, compute_s, wait_s)
        self._outbox[0] = (MAGIC, PROTOCOL, 0, self._client, *fields)
        header = self._comm.Isend([self._outbox.view(np.uint8), MPI.BYTE], 0, HEADER_TAG)
        weights = self._comm.Isend([self._buffer, MPI.FLOAT], 0, WEIGHTS_TAG)
        self._backoff.wait(header)
        self._backoff.wait(weights)

    def finish(self) -> None:
        """Answer a stop; afterwards the wire is closed. Client ranks."""
        self._outbox[0] = (MAGIC, PROTOCOL, LAST, self._client, 0, 0, 0, 0, 0.0, 0.0, 0.0)
        self._backoff.wait(self._comm.Isend([self._outbox.view(np.uint8), MPI.BYTE], 0, HEADER_TAG))
        self._request.Free()
