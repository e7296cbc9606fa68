"""A worker's side of the wire, over MPI: it receives orders and sends updates.

The server's side is server_wire.py; messages.py describes the messages.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
from torch import Tensor

from asyncfeded.model.slices import Slice
from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.waiting import Backoff
from asyncfeded.mpi.world import PROTOCOL
from asyncfeded.wire.group import LAST_WORDS_S, Group
from asyncfeded.wire.member_wire import Onward
from asyncfeded.wire.messages import (
    GONE,
    HEAD,
    HEADER,
    HEADER_TAG,
    LAST,
    LEAVES,
    MAGIC,
    NO_SCORES,
    RANKS_LOST,
    STOP,
    TESTED,
    Order,
    only,
    pack,
    unpack,
)
from asyncfeded.wire.transfer import CHUNK, Peer, Receiving, Sending

P = ParamSpec("P")
T = TypeVar("T")
BULK_S = 20e-6
"""How long a client that would look sleeps between two polls while it sends an update of several chunks: the server moves
the data, and its second thread can use the core."""
LOOK_S = 1e-3
"""Who trains looks for a STOP only so often: a look takes 5 us, and the steps of a small model 200."""


class ServerLostError(RuntimeError):
    """MPI reports that the server has died."""


def _unless_lost(method: Callable[P, T]) -> Callable[P, T]:
    """What MPI says in this method is about the server; what it says of a rank of the group, `Onward` catches."""

    @wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except MPI.Exception as error:
            raise ServerLostError(error.Get_error_string()) from None

    return guarded


class ClientWire:
    """A worker's side. Rank 0 of the server sends and receives the headers; each of its ranks, a slice of the model.

    Every method raises ServerLostError where MPI reports that the server has died (ULFM).

    Args:
        comm: the job's communicator.
        buffer: float32 (size,) in host memory, for receiving and for sending. It belongs to MPI inside `receive` and
            `send`, and to the caller between them.
        backoff: how to wait.
        slices: what each rank of the server holds; empty: rank 0 holds everything.
        leaves: whether the next update is the last one, after which the server sends a STOP; of a client that has joined.
        group: the ranks that train with this one, their leader; None: there are none. GroupLostError: one has died.

    Attributes:
        ranks_lost: whether the server said at the end that a rank is lost. Ranks then leave without waiting for each other.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        buffer: Tensor,
        backoff: Backoff,
        slices: Sequence[Slice] = (),
        leaves: Callable[[], bool] = lambda: False,
        group: Group | None = None,
    ) -> None:
        self._leaves = leaves
        self._comm, self._backoff, self.ranks_lost, self._size = comm, backoff, False, len(buffer)
        self._parts = [(Peer(comm, rank, "the server"), part) for rank, part in cut(buffer, slices)]
        self._onward = Onward(group, [part for _, part in self._parts]) if group else None
        self._look: Callable[[], object] = group.look if group else int  # a function that does nothing
        self._inbox, self._outbox = np.zeros(1, HEADER), np.zeros(1, HEADER)
        self._scores = self._outbox["scores"][0]
        row = self._outbox.view(np.uint8)
        self._header = comm.Send_init([row[:HEAD], MPI.BYTE], 0, HEADER_TAG)  # to send it again takes 1 us less
        self._header_and_scores = comm.Send_init([row, MPI.BYTE], 0, HEADER_TAG)
        self._num_sent = 0  # number of messages; the tags of chunks follow from it
        self._sending: list[Sending] = []  # the update sent last
        # float32 (size,): an update that is on its way while the next round begins. It belongs to MPI until `_end_sending`.
        self._ahead = None if self._size > CHUNK or slices or group else np.empty(self._size, np.float32)
        # This receive is posted whenever no header is being read. While the worker trains, an order or a STOP completes it.
        self._request = comm.Recv_init([self._inbox.view(np.uint8), MPI.BYTE], 0, HEADER_TAG)
        self._request.Start()
        self._here = self._stopped = False  # whether `stopped` found it complete, and whether it found a STOP
        self._looked_s = 0.0

    @_unless_lost
    def receive(self) -> Order | None:
        """Wait for the server's next header. Returns an order, or None to stop. Client ranks."""
        while not (self._here or self._request.Test()):
            self._backoff.pause()
            self._look()
        self._backoff.reset()
        _, _, flags, client, epochs, number, version, steps, _, rate, *_, share = unpack(self._inbox)
        if flags & STOP:
            return None
        receiving = [Receiving(*part) for part in self._parts]
        order = Order(client, number, version, epochs, steps, share, rate)
        if self._onward:
            self._onward.begin(self._inbox.view(np.uint8)[:HEAD])
        while not all(part.complete for part in receiving):
            if any([part.poll() for part in receiving]):  # noqa: C419, each of them
                self._backoff.reset()
            else:
                self._backoff.pause()
                self._look()
            if self._onward:
                self._onward.push([part.done for part in receiving])
        if self._onward:
            self._onward.finish()
        self._request.Start()
        self._here = False
        return order

    @_unless_lost
    def stopped(self) -> bool:
        """Whether the server has sent a STOP. For use while training. Never waits. Client ranks."""
        if (now := time.perf_counter()) - self._looked_s > LOOK_S:
            self._looked_s = now
            self._here = self._here or self._request.Test()
            if self._here:  # behind an order nothing but a STOP comes
                self._stopped = bool(unpack(self._inbox)[2] & STOP) or self._comm.Iprobe(0, HEADER_TAG)
        return self._stopped

    @_unless_lost
    def send(
        self,
        order: Order,
        samples: int,
        steps: int,
        train_loss: float,
        compute_s: float,
        wait_s: float,
        scores: tuple[float, ...] = NO_SCORES,
        measured: float = math.nan,
    ) -> None:
        """Send the update that an order asked for. Its weights are in the buffer. Client ranks.

        Returns when the buffer may be written again: at once, if the next order is here.
        """
        if self._sending:
            self._end_sending()
        client, number, version, epochs, *_ = order
        flags, header = LEAVES if self._leaves() else 0, self._header
        if scores is not NO_SCORES:
            flags, header, self._scores[:] = flags | TESTED, self._header_and_scores, scores
        done = (steps, samples, train_loss, compute_s, wait_s, measured)
        pack(self._outbox, 0, (MAGIC, PROTOCOL, flags, client, epochs, number, version, *done))
        header.Start()
        self._num_sent += 1
        parts = self._parts
        if goes_on := self._here and self._ahead is not None:
            self._ahead[:] = parts[0][1]
            parts = [(parts[0][0], self._ahead)]
        self._sending = [Sending(*part, None if part[0].rank else header, self._num_sent) for part in parts]
        if goes_on:
            self._sending[0].go_on()
        else:
            self._end_sending()

    def _end_sending(self) -> None:
        """Wait until the update sent last is on its way, so that what it was sent from may be written."""
        sending, given = self._sending, 0
        while not all([part.go_on() for part in sending]):  # noqa: C419, each of them
            if (now_given := sum(part.given for part in sending)) > given:
                given = now_given
                self._backoff.reset()
            elif self._backoff.looks and self._size > CHUNK:
                time.sleep(BULK_S)
            else:
                self._backoff.pause()
        self._backoff.reset()
        self._sending = []

    @_unless_lost
    def give_up(self) -> None:
        """Tell the server that this client ends, since a rank of its group has died. Client ranks."""
        if self._request:  # else the wire is closed
            pack(self._outbox, 0, only(GONE))
            self._header.Start()
            self._parts[0][0].ring()
            until = time.perf_counter() + LAST_WORDS_S
            while not self._header.Test() and time.perf_counter() < until:
                self._backoff.pause()

    @_unless_lost
    def finish(self) -> None:
        """Answer a STOP, and wait until all workers have answered. Afterwards the wire is closed. Client ranks."""
        self._end_sending()
        while self.receive() is not None:  # an order that nobody trains for any more is still received
            pass
        pack(self._outbox, 0, only(LAST))
        self._request.Start()
        self._header.Start()
        self._parts[0][0].ring()
        for request in (self._header, self._request):
            self._backoff.wait(request)
        self.ranks_lost = bool(self._inbox[0]["flags"] & RANKS_LOST)
        for request in (self._header, self._header_and_scores, self._request):
            request.Free()
        if self._onward:
            self._onward.begin(self._inbox.view(np.uint8)[:HEAD])
            self._onward.finish()


def cut(buffer: Tensor, slices: Sequence[Slice]) -> list[tuple[int, np.ndarray]]:
    """The parts of a wire's buffer that go side by side, each with the rank of the server that holds it."""
    held = [(rank, start, stop) for rank, (start, stop) in enumerate(slices) if stop > start] or [(0, 0, len(buffer))]
    return [(rank, buffer.numpy()[start:stop]) for rank, start, stop in held]
