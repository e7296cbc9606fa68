"""One model on its way between two ranks: the raw buffer in chunks, a message each, few of them under way at a time.

Neither side waits here: the one who sends is told how much of the buffer is ready, the one who receives learns how much is
there, so that work on one chunk overlaps with the transfer of the next. With a hundred chunks under way MPICH stalled.
"""

from collections import deque

import numpy as np

from asyncfeded.model import kernel
from asyncfeded.mpi.launcher import MPI

CHUNK = kernel.CHUNK
"""Elements of a message: parts of a model that the kernel can take one by one."""
UNDER_WAY = 4
"""Chunks of a model that are under way at a time."""
WEIGHTS_TAG = 2
TAGS = 30_000
"""So many messages of a sender in a row have chunks of different tags; every MPI has tags up to 32767."""
STATUS = MPI.Status()
"""Of the message looked at last; making one takes as long as posting a receive."""


class Receiving:
    """A model that arrives.

    Args:
        comm: the job's communicator.
        weights: float32 (size,), to receive into; belongs to MPI until `complete`, but for the parts that `poll` has given.
        source: rank that sends it.
        number: which of the sender's messages it is.

    Attributes:
        done: elements that are here.
        fault: what is wrong with what has arrived, as a sentence; empty: nothing.
    """

    def __init__(self, comm: MPI.Intracomm, weights: np.ndarray, source: int, number: int = 0) -> None:
        self._comm, self._weights, self._source, self._tag = comm, weights, source, WEIGHTS_TAG + number % TAGS
        self.fault = ""
        self._requests: deque[MPI.Request] = deque()
        self.done = self._posted = 0
        while self._posted < len(weights) and len(self._requests) < UNDER_WAY:
            self._post()

    @property
    def complete(self) -> bool:
        """Whether all of it is here."""
        return self.done == len(self._weights)

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
        if self._posted < len(self._weights):
            self._post()
        start, self.done = self.done, min(self.done + CHUNK, len(self._weights))
        if count != self.done - start:
            got = "more" if count < 0 else count
            self.fault = f"it is of another length: {got} numbers came where {self.done - start} were expected"
        return start, self.done

    def _post(self) -> None:
        start, self._posted = self._posted, min(self._posted + CHUNK, len(self._weights))
        part = self._weights[start : self._posted]
        self._requests.append(self._comm.Irecv([part, MPI.FLOAT], self._source, self._tag))


class Sending:
    """A model that leaves.

    Args:
        comm: the job's communicator.
        weights: float32 (size,), to send from; what is ready of it must not be written until `sent`.
        target: rank that receives it.
        header: request of the message before it, which counts as one of the chunks under way.
        number: which of the sender's messages it is.

    Attributes:
        given: elements that MPI has been given.
    """

    def __init__(self, comm: MPI.Intracomm, weights: np.ndarray, target: int, header: MPI.Request, number: int = 0) -> None:
        self._comm, self._weights, self._target, self._tag = comm, weights, target, WEIGHTS_TAG + number % TAGS
        self._requests = deque([header])
        self.given = 0

    def push(self, ready: int) -> bool:
        """Give MPI chunks of the first `ready` elements, if few are under way. Never waits.

        Returns:
            Whether all of these elements have been given.
        """
        while self.given < ready:
            if len(self._requests) >= UNDER_WAY and not self._requests[0].Test():
                return False
            if len(self._requests) >= UNDER_WAY:
                self._requests.popleft()
            start, self.given = self.given, min(self.given + CHUNK, ready)
            self._requests.append(self._comm.Isend([self._weights[start : self.given], MPI.FLOAT], self._target, self._tag))
        return True

    def sent(self) -> bool:
        """Whether all has been sent, so that the buffer may be written. Never waits."""
        while self._requests and self._requests[0].Test():
            self._requests.popleft()
        return self.given == len(self._weights) and not self._requests
