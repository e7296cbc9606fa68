"""What the ranks of a server say to each other: rank 0 decides, and the others do the same on their slices.

Rank 0 says to all others, in words of fixed size, what comes next; a word may have numbers behind it. The others tell rank 0
when their slice of an update is here. Besides that only the numbers of which norms are made pass between them, and, when the
whole model is tested or saved, their slices of it. slice_wire.py does what rank 0 says.

They watch each other as the ranks of a client do (group.py): one that has died, or that cannot be reached, ends the job. One
that is only stopped is waited for, as a server of one rank would be; no worker is counted as silent meanwhile.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from asyncfeded.model.slices import Slice
from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.waiting import bell
from asyncfeded.own import PassedOnError
from asyncfeded.wire.group import Group, GroupLostError
from asyncfeded.wire.messages import Arrival, Lost, Refused
from asyncfeded.wire.transfer import Peer, Receiving, Sending, peers

T = TypeVar("T")


class What(IntEnum):
    """What rank 0 says."""

    RECEIVE = 1
    """An update begins to arrive: receive your slice of it."""
    REPLY = 2
    """A worker is sent the header of a reply: send it your slice."""
    TAKE = 3
    """An update is here; it is the next one."""
    REFUSE = 4
    """A message of a client was refused by the wire."""
    LOSE = 5
    """A worker was given up; the clients that no worker trains now follow."""
    COLLECT = 6
    """Send your slice of the global model to rank 0."""
    SCORE = 7
    """The values of an evaluation follow."""
    CHECKPOINT = 8
    """Write your slice of the checkpoint of this number."""
    END = 9
    """The wire is closed."""
    ASK = 10
    """Answer that you listen, and tell which workers have moved something."""


WORD = np.dtype(
    [
        ("what", np.int32),
        ("worker", np.int32),
        ("client", np.int32),
        ("slot", np.int32),  # index of the receive buffer
        ("flag", np.int32),  # RECEIVE: whether to measure it; REFUSE: whether it came in place of an answer
        ("behind", np.int32),  # how many numbers follow, float64
        ("epochs", np.int32),
        ("round", np.int32),
        ("number", np.int64),  # which of the worker's messages
        ("version", np.int64),
        ("steps", np.int64),
        ("samples", np.int64),
        ("train_loss", np.float64),
        ("compute_s", np.float64),
        ("wait_s", np.float64),
        ("measured", np.float64),
        ("now", np.float64),  # what the clock shows
    ]
)
HERE = np.dtype([("worker", np.int64), ("number", np.int64), ("fault", "S160")])
"""What another server rank tells rank 0: its slice of a worker's message is here, and what is wrong with it; or with the
number MOVES, that a worker moves something to it or from it; or with the worker LISTENS too, that it listens."""
MOVES = LISTENS = -1
WRITTEN = np.dtype([("line", "S160"), ("problem", "S320")])
"""What another server rank tells rank 0 of a checkpoint: the line that names its slice, or why it could not be written."""
WORD_TAG, BEHIND_TAG, HERE_TAG, WRITTEN_TAG = 1, 3, 4, 5
ASK_S = 0.5
"""Seconds between two questions whether the others listen."""
LATE_S = 1.0
"""Who has not answered for so long does not listen."""


class ServerRankLostError(PassedOnError):
    """A rank of the server has died, or cannot be reached."""


class Word(NamedTuple):
    """A word of rank 0, with the numbers behind it."""

    what: What
    fields: dict[str, int | float]
    behind: np.ndarray


class ServerRanks:
    """The ranks of one server.

    Every method raises ServerRankLostError where one of them has died.

    Args:
        group: they themselves.
        slices: what each of them holds.

    Attributes:
        slices: as given.
        index: which rank of the server this is.
        connect: lets them watch each other; see `Group.connect`.
        moved: workers that have moved something to or from the others since rank 0 emptied this. Rank 0.
    """

    def __init__(self, group: Group, slices: Sequence[Slice]) -> None:
        self._comm, self.slices, self._group, self.connect = group.comm, tuple(slices), group, group.connect
        self.index, self.moved, comm = group.rank, set[int](), group.comm
        self._answers, self._asked_s = comm.size - 1, 0.0  # to the last question, and when it was asked
        self._others = range(1, comm.size)
        self._bells = [bell(comm, rank) for rank in range(comm.size)]
        self._said: deque[tuple[MPI.Request, np.ndarray]] = deque()  # what MPI may still read
        self._here: dict[tuple[int, int], list[str]] = {}  # by worker and number: what those with their slice said of it
        self._ended = False
        self._written: list[tuple[MPI.Request, np.ndarray]] = []  # what the others will tell of the checkpoint under way
        rows = len(self._others) if comm.rank == 0 else 1
        self._inbox = np.zeros(rows, HERE if comm.rank == 0 else WORD)
        source, tag = (1, HERE_TAG) if comm.rank == 0 else (0, WORD_TAG)
        self._requests = [
            comm.Recv_init([self._inbox[i : i + 1].view(np.uint8), MPI.BYTE], source + i, tag) for i in range(rows)
        ]
        for request in self._requests:
            request.Start()

    @property
    def mine(self) -> Slice:
        """The slice of this rank."""
        return self.slices[self.index]

    def numbers_of_all(self, mine: np.ndarray) -> np.ndarray:
        """See `slices.Gather`."""
        counts = [2 * each.chunks for each in self.slices]
        everything = np.zeros((sum(counts) // 2, 2))
        self._wait(_or_lost(lambda: self._comm.Iallgatherv(mine, [everything, counts])))
        return everything

    # Rank 0

    def say(self, what: What, behind: Sequence[float] = (), **fields: float) -> None:
        """Say a word to all others; nothing after the END. Rank 0."""
        if self._ended:
            return
        self._ended = what is What.END
        word, numbers = np.zeros(1, WORD), np.array(behind, np.float64)
        word["what"], word["behind"] = what, len(numbers)
        for name, value in fields.items():
            word[name] = value
        for rank in self._others:
            self._say(word.view(np.uint8), rank, WORD_TAG)
            if len(numbers):
                self._say(numbers.view(np.uint8), rank, BEHIND_TAG)

    def say_event(self, event: Arrival | Refused | Lost, now: float, slot: int) -> None:
        """Say which event is next, what the clock shows, and which buffer an arrival lies in. Rank 0."""
        if isinstance(event, Arrival):
            figures = {name: getattr(event, name) for name in ("client", "epochs", "round", "steps", "samples")}
            figures |= {name: getattr(event, name) for name in ("train_loss", "compute_s", "wait_s", "measured")}
            self.say(What.TAKE, now=now, slot=slot, version=event.base_version, **figures)
        elif isinstance(event, Refused):
            self.say(What.REFUSE, now=now, client=event.client, flag=event.answered)
        else:
            self.say(What.LOSE, event.clients, now=now)

    def whole(self, mine: Tensor, into: Tensor) -> Tensor:
        """Collect the slices of the global model. Rank 0.

        Args:
            mine: float32, this rank's own slice of it, in any memory.
            into: float32 (size,), where to put them.
        """
        self.say(What.COLLECT)
        into[: len(mine)].copy_(mine)
        for peer, held in zip(peers(self._comm, [(rank,) for rank in self._others]), self.slices[1:], strict=True):
            part = into[held.start : held.stop]
            there = part if part.is_cpu else part.cpu()
            receiving = Receiving(peer, there.numpy())
            while not receiving.complete:
                self._until(lambda: receiving.poll() is not None)  # noqa: B023  # it is called at once
            if there is not part:
                part.copy_(there)
        return into

    def is_everywhere(self, worker: int, number: int) -> bool:
        """Whether all others have their slice of a worker's message. Rank 0. Never waits."""
        self._hear_others()
        return len(self._here.get((worker, number), ())) == len(self._others)

    def fault(self, worker: int, number: int) -> str:
        """What is wrong with a message that is everywhere, as a sentence; empty if nothing is. Rank 0; asked once."""
        return next(filter(None, self._here.pop((worker, number), ())), "")

    def listen(self) -> bool:
        """Whether all others listen. Rank 0, which asks them; to be called at every poll. Never waits."""
        self._hear_others()
        self._look(lambda: False)
        if (asked_for_s := time.perf_counter() - self._asked_s) > ASK_S and self._answers == len(self._others):
            self.say(What.ASK)
            self._asked_s, self._answers, asked_for_s = time.perf_counter(), 0, 0.0
        return asked_for_s < LATE_S or self._answers == len(self._others)

    def _hear_others(self) -> None:
        for i, request in enumerate(self._requests):
            while _or_lost(request.Test):
                whose, which, fault = self._inbox[i].item()
                if which != MOVES:
                    self._here.setdefault((whose, which), []).append(fault.decode())
                elif whose != LISTENS:
                    self.moved.add(whose)
                else:
                    self._answers += 1
                request.Start()

    def begin_checkpoint(self, number: int) -> None:
        """Let all others write their slice of a checkpoint. Rank 0; the one before must be `written`."""
        self.say(What.CHECKPOINT, number=number)
        rows = [np.zeros(1, WRITTEN) for _ in self._others]
        ranks = zip(rows, self._others, strict=True)
        self._written = [(self._comm.Irecv([row.view(np.uint8), MPI.BYTE], rank, WRITTEN_TAG), row) for row, rank in ranks]

    def written(self) -> list[tuple[str, str]] | None:
        """The line and the problem of each other rank, once all have written; None before. Rank 0. Never waits."""
        if not self._are_written():
            self._look(self._are_written)
            return None
        return [(row["line"][0].decode(), row["problem"][0].decode()) for _, row in self._written]

    def _are_written(self) -> bool:
        return all([_or_lost(request.Test) for request, _ in self._written])  # noqa: C419  # each must be tested

    # The others

    def hear(self) -> Word | None:
        """The next word of rank 0; None if there is none yet. Never waits for a word. Server ranks except rank 0."""
        if not _or_lost(self._requests[0].Test):
            self._look(self._requests[0].Test)
            return None
        row = self._inbox[0]
        fields = dict(zip(row.dtype.names or (), row.item(), strict=True))
        behind = np.zeros(int(fields["behind"]))
        if len(behind):
            self._wait(_or_lost(lambda: self._comm.Irecv([behind.view(np.uint8), MPI.BYTE], 0, BEHIND_TAG)))
        what = What(fields["what"])
        if what is not What.END:
            self._requests[0].Start()
        return Word(what, fields, behind)

    def tell_here(self, worker: int, number: int, fault: str) -> None:
        """Tell rank 0 that this rank's slice of a worker's message is here. Server ranks except rank 0."""
        self._say(np.array([(worker, number, fault.encode()[:160])], HERE).view(np.uint8), 0, HERE_TAG)

    def answer(self, moved: Iterable[int]) -> None:
        """Answer rank 0 that this rank listens, and which workers have moved something. Server ranks except rank 0."""
        for worker in moved:
            self.tell_here(worker, MOVES, "")
        self.tell_here(LISTENS, MOVES, "")

    def tell_written(self, line: str, problem: str) -> None:
        """Tell rank 0 how writing the slice of a checkpoint went. Server ranks except rank 0."""
        told = np.array([(line.encode(), problem.encode()[:320])], WRITTEN)
        self._say(told.view(np.uint8), 0, WRITTEN_TAG)

    def give(self, mine: Tensor) -> None:
        """Send this rank's slice of the global model, float32, to rank 0. Server ranks except rank 0."""
        there = mine.cpu().numpy()
        self._until(Sending(Peer(self._comm, 0, "rank 0"), there).go_on)

    def close(self) -> None:
        """Wait until all that was said has left, and expect nothing more; rank 0 has said the END."""
        for request, _ in self._said:
            self._wait(request)
        if self.index == 0:
            self._until(self._is_answered)
        for request in self._requests:
            if self.index == 0:  # posted, and nothing comes
                request.Cancel()
                self._wait(request)
            request.Free()
        self._group.undo.close()

    def _is_answered(self) -> bool:
        self._hear_others()
        return self._answers == len(self._others)

    def _say(self, raw: np.ndarray, rank: int, tag: int) -> None:
        while self._said and bool(_or_lost(self._said[0][0].Test)):
            self._said.popleft()
        self._said.append((_or_lost(lambda: self._comm.Isend([raw, MPI.BYTE], rank, tag)), raw))
        self._bells[rank]()

    def _wait(self, request: MPI.Request) -> None:
        self._until(request.Test)

    def _until(self, done: Callable[[], bool]) -> None:
        _or_lost(lambda: self._group.wait(done))

    def _look(self, done: Callable[[], bool]) -> None:
        _or_lost(lambda: self._group.look(done))


def _or_lost(call: Callable[[], T]) -> T:
    try:
        return call()
    except MPI.Exception as error:
        raise ServerRankLostError(error.Get_error_string()) from None
    except GroupLostError as error:
        raise ServerRankLostError(str(error)) from None
