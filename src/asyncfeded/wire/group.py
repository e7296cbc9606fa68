"""Ranks that work together, those of a client or of the server: how they wait for each other, and what a death means.

The ranks of a client leave when one of them has died (this file); those of the server end the job (server_ranks.py).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import cast

import numpy as np

from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.lifeline import Lifeline
from asyncfeded.mpi.seats import Part
from asyncfeded.mpi.waiting import Backoff, Wait, bell
from asyncfeded.mpi.world import World
from asyncfeded.own import PassedOnError

LOOK_S = 0.05
"""Seconds of waiting between two looks whether all ranks of the group are there."""
LAST_WORDS_S = 1.0
"""What a rank has sent before it ended may arrive so many seconds later."""


class GroupLostError(PassedOnError):
    """A rank of this rank's group has died."""


class Group:
    """The ranks of a client, or of the server; this is one of them.

    Args:
        comm: theirs; rank 0 is the leader, of a client the one who speaks with the server.
        part: the place of this rank among them.
        backoff: how to wait.
        lifeline: tells whether they are there; None: this group never begins.
        name: for the user, such as `group 1`.

    Attributes:
        begun: whether they work together. What is tried before the first message sends none: each rank works alone.
        watch: is called now and then while this rank waits.
        undo: is called when the group has ended: it frees what was made for it.
    """

    def __init__(self, comm: MPI.Intracomm, part: Part, backoff: Backoff, lifeline: Lifeline | None, name: str) -> None:
        self.comm, self.part, self.lifeline, self._backoff, self._name = comm, part, lifeline, backoff, name
        self.rank, self.size, self.begun = part.rank, part.size, False
        self.watch: Callable[[], object] = int  # a function that does nothing
        self.undo = ExitStack()
        self._others = [bell(comm, rank) for rank in range(part.size) if lifeline and rank != part.rank]
        self._looked = 0.0

    def connect(self, silence_s: float) -> None:
        """Let the ranks watch each other; see `Lifeline.connect`."""
        assert self.lifeline
        self.lifeline.connect(silence_s)

    def share(self, array: np.ndarray) -> None:
        """Overwrite an array by that of the leader. Collective in the group.

        Raises:
            GroupLostError: a rank of the group has died.
        """
        self.wait(self.comm.Ibcast(array.view(np.uint8), 0).Test)

    def total(self, value: float) -> float:
        """The sum of a number of every rank; until the group has begun, there is only this one. Collective in the group.

        Raises:
            GroupLostError: a rank of the group has died.
        """
        if not self.begun:
            return value
        values = np.zeros(self.size)
        self.wait(self.comm.Iallgather(np.array([value]), values).Test)
        return float(values.sum())

    def wait(self, done: Callable[[], bool]) -> None:
        """Wait until `done`, which never waits itself.

        Raises:
            GroupLostError: a rank of the group has died.
        """
        self._backoff.reset()
        try:  # and not `told`, which takes 1 us: a third of a short sum
            while not done():
                self._backoff.pause()
                self.look(done)
        except MPI.Exception as error:
            raise self._lost(error) from None

    @contextmanager
    def told(self) -> Iterator[None]:
        """What MPI says in this context is about a rank of the group."""
        try:
            yield
        except MPI.Exception as error:
            raise self._lost(error) from None

    def _lost(self, error: MPI.Exception) -> GroupLostError:
        return GroupLostError(f"{self._name}: MPI says: {error.Get_error_string()}")

    def moved(self) -> None:
        """Something has come, and what follows from it was sent: the next pause of `wait` is short again, for all ranks."""
        self._backoff.reset()
        for ring in self._others:
            ring()

    def look(self, done: Callable[[], bool] = lambda: False) -> None:
        """To be called while this rank waits: whether all are there that it has a connection to.

        Args:
            done: what it waits for may still come from a rank that has ended.

        Raises:
            GroupLostError: a rank of the group has died.
        """
        assert self.lifeline
        if (now := time.perf_counter()) - self._looked < LOOK_S:
            return
        self._looked = now
        self.watch()
        if (rank := self.lifeline.lost()) is None:
            return
        until = time.perf_counter() + LAST_WORDS_S
        while time.perf_counter() < until:
            if done():
                return
            self._backoff.pause()
        raise GroupLostError(f"{self._name}: its rank {rank} has died or cannot be reached")


def gather_group(world: World, wait: Wait) -> Group | None:
    """The group of this rank; None if no worker has several ranks, or on the server. Collective.

    Args:
        world: all ranks, seated.
        wait: as the config's `wait`.
    """
    seats = world.seats
    if not seats.grouped:
        return None
    worker = seats.worker(world.rank)
    comm = cast("MPI.Intracomm", world.comm.Split(worker if worker >= 0 else MPI.UNDEFINED, world.rank))
    if worker < 0 or comm.size == 1:
        return None
    return make_group(comm, world.backoff(wait), f"group {worker}")


def make_group(comm: MPI.Intracomm, backoff: Backoff, name: str) -> Group:
    """The ranks of a communicator as a group, which frees it at its end. Collective in it."""
    lifeline = Lifeline(comm)
    group = Group(comm, Part(comm.rank, comm.size), backoff, lifeline, name)
    group.undo.callback(comm.Free)
    group.undo.callback(lifeline.close)
    return group


def imagine_group(part: Part) -> Group:
    """A rank of a group that never begins, in a job that was not started."""
    return Group(MPI.Intracomm(), part, Backoff(), None, "")
