"""One model on its way between two ranks: the raw buffer in chunks, one message each, few of them under way at a time.

Neither side waits here. The sender is told how much of the buffer is ready, and the receiver learns how much has arrived:
so work on one chunk overlaps with the transfer of the next. With a hundred chunks under way MPICH stalled.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from asyncfeded.model import kernel
from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.waiting import bell

CHUNK = kernel.CHUNK
"""Elements of a message. The kernel can take a model in parts of this size."""
UNDER_WAY = 4
"""How many chunks of a model are under way at a time."""
WEIGHTS_TAG = 2
TAGS = 30_000
"""So many messages in a row from one sender have different tags for their chunks; every MPI has tags up to 32767."""
STATUS = MPI.Status()
"""Status of the message tested last. Making a status takes as long as posting a receive."""


@dataclass(slots=True)
class Peer:
    """One end of a wire: the rank that a worker, or the server, speaks through."""

    comm: MPI.Comm
    rank: int
    """In `comm`; of the other group, if that is an intercommunicator."""
    name: str
    """For the user, such as `rank 2`."""
    group: tuple[int, ...] = ()
    """The ranks that it speaks for, in `comm`."""
    ring: Callable[[], object] = field(init=False, repr=False)
    """Wakes it, to be called when a message to it was given to MPI."""

    def __post_init__(self) -> None:
        self.ring = bell(self.comm, self.rank)

    def listen(self, row: np.ndarray, tag: int) -> MPI.Prequest:
        """A receive that may be started again and again; none where nobody is."""
        return self.comm.Recv_init([row.view(np.uint8), MPI.BYTE], self.rank, tag) if self.comm else MPI.Prequest()


def peers(comm: MPI.Intracomm, groups: Iterable[tuple[int, ...]]) -> list[Peer]:
    """The first rank of each group of a communicator."""
    return [Peer(comm, group[0], f"rank {group[0]}", group) for group in groups]


class Receiving:
    """A model that is being received.

    Args:
        source: the sender.
        weights: float32 (size,), to receive into. It belongs to MPI until `complete`, except the parts that `poll` returned.
        number: which of the sender's messages it is.

    Attributes:
        done: how many elements are here.
        fault: what is wrong with what has arrived, as a sentence; empty if nothing is.
    """

    def __init__(self, source: Peer, weights: np.ndarray, number: int = 0) -> None:
        self._source, self._weights, self._size, self._tag = source, weights, len(weights), WEIGHTS_TAG + number % TAGS
        self.fault = ""
        self._requests: deque[MPI.Request] = deque()
        self.done = self._posted = 0
        while self._posted < self._size and len(self._requests) < UNDER_WAY:
            self._post()

    @property
    def complete(self) -> bool:
        """Whether all of it is here."""
        return self.done == self._size

    def poll(self) -> tuple[int, int] | None:
        """The next part that is here, as start and stop; None if there is none yet. Never waits."""
        try:
            if not self._requests or not self._requests[0].Test(STATUS):
                return None
            count = STATUS.Get_count(MPI.FLOAT)
        except MPI.Exception as error:
            if error.Get_error_class() != MPI.ERR_TRUNCATE:
                raise
            count = -1
        self._requests.popleft()
        if self._posted < self._size:
            self._post()
        start, self.done = self.done, min(self.done + CHUNK, self._size)
        if count == CHUNK:  # its sender waits for that
            self._source.ring()
        if count != self.done - start:
            got = "more" if count < 0 else count
            self.fault = f"it is of another length: {got} numbers came where {self.done - start} were expected"
        return start, self.done

    def _post(self) -> None:
        start, self._posted = self._posted, min(self._posted + CHUNK, self._size)
        part, source = self._weights[start : self._posted], self._source
        self._requests.append(source.comm.Irecv([part, MPI.FLOAT], source.rank, self._tag))


class Sending:
    """A model that is being sent.

    Args:
        target: the receiver.
        weights: float32 (size,), to send from. The part of it that is ready must not be written until `sent`.
        header: request of the header sent before it, which counts as one of the chunks under way; None: there is none.
        number: which of the sender's messages it is.

    Attributes:
        given: how many elements MPI has been given.
    """

    def __init__(self, target: Peer, weights: np.ndarray, header: MPI.Request | None = None, number: int = 0) -> None:
        self._target, self._weights, self._tag = target, weights, WEIGHTS_TAG + number % TAGS
        self._requests = deque([header] if header else [])
        self.given = 0

    def push(self, ready: int) -> bool:
        """Give MPI chunks of the first `ready` elements, as long as few are under way. Never waits.

        Returns:
            Whether all of these elements have been given.
        """
        while self.given < ready:
            if len(self._requests) >= UNDER_WAY:
                if not self._requests[0].Test():
                    return False
                self._requests.popleft()
            start, self.given, target = self.given, min(self.given + CHUNK, ready), self._target
            self._requests.append(target.comm.Isend([self._weights[start : self.given], MPI.FLOAT], target.rank, self._tag))
            target.ring()
        return True

    def go_on(self) -> bool:
        """Push all of it. Returns whether all has been sent. Never waits."""
        return self.push(len(self._weights)) and self.sent()

    def sent(self) -> bool:
        """Whether all has been sent, so that the buffer may be written. Never waits."""
        requests = self._requests
        while requests and requests[0].Test():
            requests.popleft()
        return not requests and self.given == len(self._weights)
