"""The server's side of the wire in a run that clients may join and leave: worker i trains client i, or nobody is there.

A client that has been let in at the door (door.py) is connected by MPI, one at a time. Accepting stops the server until the
other side has answered, so it is told to connect first, and asked for a sign of life last: what is left is some
milliseconds. MPICH crashes, and takes the server with it, if the other side dies within these.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from asyncfeded.mpi import launcher
from asyncfeded.mpi.launcher import MPI
from asyncfeded.wire.door import Door, Guest, News, Words
from asyncfeded.wire.messages import BYE, EMPTY, HEADER_TAG, LEAVES, STOP, Incoming, Joined, Lost, Order, Refused
from asyncfeded.wire.server_wire import ServerWire
from asyncfeded.wire.transfer import Peer

ACCEPT_S = 5
"""Whole seconds after which MPI gives up a client that does not answer."""
TURN_S = 60.0
"""Seconds within which a client must connect when it is its turn."""


def absent(clients: Sequence[int]) -> list[Peer]:
    """Nobody, in the place of each of these clients."""
    return [Peer(MPI.COMM_NULL, MPI.PROC_NULL, f"client {client}") for client in clients]


class OpenWire(ServerWire):
    """The server's side, with a worker for every client. Arguments and attributes: see `ServerWire`."""

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401, as in ServerWire
        super().__init__(*arguments, **named)
        self._door: Door | None = None
        self._waiting: deque[Guest] = deque()  # for their turn
        self._turn: tuple[Guest, float] | None = None  # who may connect now, and since when, in seconds of listening
        self._port = ""
        self._here: dict[int, Guest] = {}  # by client: those who have joined
        self._leaving: set[int] = set()
        self._gone: list[object] = []  # what MPI may still use for those who died

    def open_door(self, path: Path, welcome: Callable[[Words], Words]) -> None:
        """Let clients join from now on. Rank 0. See `Door`."""
        self._door = Door(path, launcher.vendor(), self._free_clients, welcome)

    @property
    def ranks_lost(self) -> bool:
        """See `ServerWire`."""
        return super().ranks_lost or bool(self._gone)

    def reply(self, order: Order, weights: Tensor, ready: Callable[[int], object], due: float = 0.0) -> None:
        """See `Wire`. Rank 0. A client that leaves gets no more orders."""
        if order.client in self._leaving:
            ready(self._size)
        else:
            super().reply(order, weights, ready, due)

    def stop(self) -> int:
        """See `Wire`. Rank 0."""
        if self._door:
            self._door.close()
        for guest in (*self._waiting, *([self._turn[0]] if self._turn else [])):
            guest.line.close()
        discarded = super().stop()
        for client, guest in self._here.items():
            guest.line.close()
            if not self.ranks_lost:  # it would wait for ever for messages to the dead
                self._workers[client].comm.Disconnect()
        return discarded

    def _free_clients(self) -> list[int]:
        """The clients that nobody trains: those who have not come yet, then the dead, then those who may be dead."""
        out, silent, lost = self.assignment.absent.copy(), self.assignment.silent.copy(), self.assignment.lost.copy()
        return [*sorted(out), *sorted(lost - out - silent), *sorted(silent)]

    def _watch(self) -> None:
        """Besides what `ServerWire` watches: let those in whose turn it is, and see those off who leave."""
        super()._watch()
        for news in self._door.news() if self._door else ():
            self._hear(news)
        now = self._deadlines.listened_s
        if self._turn and now - self._turn[1] > TURN_S:
            self._turn[0].line.close()  # then it is gone
        elif not self._turn and self._waiting and not self._stopping:
            guest = self._waiting.popleft()
            self._turn, self._port = (guest, now), MPI.Open_port()  # its own: nobody is mistaken for another
            guest.line.say(port=self._port)
        for worker in self._leaving & self._left:
            self._see_off(worker)

    def _hear(self, news: News) -> None:
        guest, what = news
        in_turn = self._turn is not None and self._turn[0] is guest
        if what == "ready":
            self._waiting.append(guest)
        elif what == "connecting":
            if in_turn and not self._stopping:
                self._accept(guest)
        else:
            self._turn = None if in_turn else self._turn
            if guest in self._waiting:
                self._waiting.remove(guest)
            if self._here.get(guest.client) is guest and guest.client not in self._left:
                del self._here[guest.client]
                self._gone += [guest, *self._in_hand.sending[guest.client]]
                self._give_up(guest.client, "its process has ended, or cannot be reached", gone=True)
                self._unsent.discard(guest.client)

    def _accept(self, guest: Guest) -> None:
        """Connect a client that calls MPI now, and begin to listen to it. It stops the server for some milliseconds."""
        self._turn, began = None, time.perf_counter()
        if not guest.line.is_open:
            return
        try:
            comm = MPI.COMM_SELF.Accept(self._port, MPI.Info.Create({"timeout": str(ACCEPT_S)}))
        except MPI.Exception as error:
            guest.line.close()
            took_s = time.perf_counter() - began
            why = f"client {guest.client} did not connect within {took_s:.1f} s: {error}"
            self._arrived.append(Refused(-1, why.splitlines()[0], False))
            return  # the port stays open, so that nobody gets its name again: MPI still waits there
        MPI.Close_port(self._port)
        comm.Set_errhandler(MPI.ERRORS_RETURN)
        self._attach(guest, Peer(comm, 0, f"client {guest.client}"))
        took_ms = 1e3 * (time.perf_counter() - began)
        self._arrived.append(Joined(guest.client, f"{guest.where}; connecting it took {took_ms:.1f} ms"))

    def _attach(self, guest: Guest, peer: Peer) -> None:
        """Speak with a client that has joined, and no longer with whom it follows."""
        worker = guest.client
        if request := self._header_requests[worker]:
            request.Cancel()
            self._backoff.wait(request)
            request.Free()
            self._gone += [self._workers[worker], *self._in_hand.forget(worker), *self._incoming]
        if (before := self._here.get(worker)) is not None:
            before.line.close()
        self._here[worker], self._workers[worker] = guest, peer
        self._incoming = [incoming for incoming in self._incoming if incoming.worker != worker]
        self._announced = [item for item in self._announced if item[0] != worker]
        self._in_hand.forget(worker)
        self._queues.clear(worker)
        for workers in (self._unsent, self.assignment.lost, self.assignment.silent, self.assignment.absent):
            workers.discard(worker)
        self._failed.pop(worker, None)
        self._deadlines.forget(worker)
        self._num_received[worker], self._headers[worker] = 0, EMPTY
        self._header_requests[worker] = peer.listen(self._headers[worker : worker + 1], HEADER_TAG)
        self._header_requests[worker].Start()

    def _conclude(self, incoming: Incoming) -> None:
        super()._conclude(incoming)
        worker = incoming.worker
        if incoming.header.flags & LEAVES and not self._stopping:
            self._leaving.add(worker)
            self._stops[worker] = self._flag(worker, STOP)
            self._arrived.append(Lost(self._workers[worker].name, (worker,), "it has left", left=True))

    def _isend(self, worker: int, row: np.ndarray | bytes) -> MPI.Request | None:
        return super()._isend(worker, row) if self._lives(worker) else None

    def _push(self, worker: int, ready: int) -> None:
        if self._lives(worker):
            super()._push(worker, ready)

    def _lives(self, worker: int) -> bool:
        """Whether MPI may be given a message to a worker: over TCP MPICH crashes on one to a process that has died."""
        guest = self._here.get(worker)
        return guest is None or guest.line.is_open

    def _see_off(self, worker: int) -> None:
        """Part from a client that has answered the last message."""
        if bye := self._flag(worker, BYE):
            self._backoff.wait(bye)
        self._header_requests[worker].Free()
        self._header_requests[worker] = MPI.Prequest()
        self._in_hand.forget(worker)
        self._workers[worker].comm.Disconnect()
        self._workers[worker : worker + 1] = absent([worker])
        self._leaving.discard(worker)
        self._left.discard(worker)
        self.assignment.lost.add(worker)
        self.assignment.absent.add(worker)
        self._here.pop(worker).line.close()
