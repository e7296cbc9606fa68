"""Snapshots of the global model on their way to a rank that only tests, and what it finds on its way back.

The server sends a version, or STOP, and the model in chunks; one snapshot is under way at a time. The tester answers with
rows of numbers: one after each batch, as a sign of life, and at last one with the values of the metrics. So the server does
not wait while a snapshot is tested, and notices when its tester falls silent.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.waiting import Backoff
from asyncfeded.wire.client_wire import ServerLostError
from asyncfeded.wire.deadlines import Deadlines
from asyncfeded.wire.messages import HEADER_TAG
from asyncfeded.wire.transfer import Peer, Receiving, Sending

T = TypeVar("T")
STOP, STOP_RANKS_LOST = -2, -3
"""Instead of a version. If a rank is lost, ranks leave without waiting for each other."""


class EvaluatorLostError(RuntimeError):
    """The rank that tests has died, or is silent. The text is for the user."""


class ToTester:
    """The server's side. Rank 0.

    Args:
        tester: the rank that tests.
        size: elements of a snapshot.
        values: how many values a test gives.
        backoff: how to wait.
        deadlines: how long the tester may be silent; each batch counts as a round of client 0.

    Attributes:
        testing: whether a snapshot was sent, and its values were not yet returned.
    """

    def __init__(self, tester: Peer, size: int, values: int, backoff: Backoff, deadlines: Deadlines) -> None:
        self._tester, self._backoff, self._deadlines = tester, backoff, deadlines
        self._snapshot = torch.empty(size)  # belongs to MPI while it is sent
        self._header, self._found = np.zeros(1, np.int64), np.zeros(1 + values)
        self._sending: Sending | None = None
        self._request = MPI.REQUEST_NULL
        self._sign_s = 0.0
        self.testing = False

    @property
    def num_bytes(self) -> int:
        """Memory of the snapshot."""
        return 4 * self._snapshot.numel()

    def send(self, x: Tensor, version: int) -> None:
        """Begin to send a copy of x, float32 (size,)."""
        assert not self.testing
        self._snapshot.copy_(x)
        self._header[0], self.testing, self._sign_s = version, True, self._deadlines.listen()
        self._sending = Sending(self._tester, self._snapshot.numpy(), self._told())
        self._hear()

    def poll(self) -> list[float] | None:
        """The values that a test gave, once they are here. Never waits.

        Raises:
            EvaluatorLostError: nothing will come.
        """
        now, size = self._deadlines.listen(), self._snapshot.numel()
        assert self._sending
        self._call(partial(self._sending.push, size))
        if not self._call(self._request.Test):
            silent_s, allowed_s = now - self._sign_s, self._deadlines.deadline_s(0, 1)
            if silent_s > allowed_s:
                raise self._lost(f"was silent for {silent_s:.1f} s, and {allowed_s:.1f} s are allowed (faults.patience)")
            return None
        self._deadlines.note(0, 1, now - self._sign_s)
        self._sign_s, done, values = now, self._found[0], self._found[1:].tolist()
        if not done:
            self._hear()
            return None
        self._call(self._sending.sent)  # it has arrived: this frees what MPI keeps of it
        self.testing = False
        return [*values]

    def wait(self) -> list[float]:
        """As `poll`, but waits for the values."""
        self._backoff.reset()
        while (values := self.poll()) is None:
            self._backoff.pause()
        return values

    def stop(self, ranks_lost: bool) -> None:
        """Let the tester leave, after the test that it may be making; it is told whether ranks are lost."""
        if self.testing:
            self.wait()
        self._header[0] = STOP_RANKS_LOST if ranks_lost else STOP
        request = self._told()
        while not self._call(request.Test):
            self._backoff.pause()

    def _told(self) -> MPI.Request:
        request = self._call(lambda: self._tester.comm.Isend(self._header, self._tester.rank, HEADER_TAG))
        self._tester.ring()
        return request

    def _hear(self) -> None:
        self._request = self._call(lambda: self._tester.comm.Irecv(self._found, self._tester.rank, HEADER_TAG))

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except MPI.Exception as error:
            raise self._lost(f"has died, MPI says: {error.Get_error_string()}") from None

    def _lost(self, what: str) -> EvaluatorLostError:
        return EvaluatorLostError(f"{self._tester.name}, which tests the model (evaluator), {what}")


class FromServer:
    """The tester's side. Every method raises ServerLostError where MPI reports that the server has died (ULFM).

    Args:
        server: the rank that sends snapshots.
        size: elements of a snapshot.
        values: how many values a test gives.
        backoff: how to wait.

    Attributes:
        snapshot: float32 (size,), the one received last.
        ranks_lost: whether the server said at the end that a rank is lost.
    """

    def __init__(self, server: Peer, size: int, values: int, backoff: Backoff) -> None:
        self._server, self._backoff = server, backoff
        self.snapshot, self.ranks_lost = torch.empty(size), False
        self._header, self._row = np.zeros(1, np.int64), np.zeros(1 + values)

    def receive(self) -> int | None:
        """Wait for the next snapshot. Returns its version, or None to leave. The evaluator's rank."""
        self._wait(self._server.comm.Irecv(self._header, self._server.rank, HEADER_TAG))
        if self._header[0] in (STOP, STOP_RANKS_LOST):
            self.ranks_lost = self._header[0] == STOP_RANKS_LOST
            return None
        receiving = Receiving(self._server, self.snapshot.numpy())
        while not receiving.complete:
            if self._call(receiving.poll) is None:
                self._backoff.pause()
        return int(self._header[0])

    def tell(self, values: list[float] | None = None) -> None:
        """Give a sign of life, or the values of the test. The evaluator's rank."""
        self._row[0] = values is not None
        self._row[1:] = values or 0.0
        request = self._server.comm.Isend(self._row, self._server.rank, HEADER_TAG)
        self._server.ring()
        self._wait(request)

    def _wait(self, request: MPI.Request) -> None:
        self._backoff.reset()
        while not self._call(request.Test):
            self._backoff.pause()

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except MPI.Exception as error:
            raise ServerLostError(error.Get_error_string()) from None
