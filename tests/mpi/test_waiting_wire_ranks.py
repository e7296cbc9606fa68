"""Bells between real ranks. All of them run on one host."""

import numpy as np
import pytest

from asyncfeded.mpi import waiting
from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.waiting import Backoff, bell, hang_bells
from mpi.ranks import together

pytestmark = pytest.mark.skipif(waiting._kernel is None, reason="no compiled kernel")


@together
def test_every_rank_rings_the_bell_of_the_next_one_in_any_communicator(world, comm):
    """Each sleeps until the rank before it has rung, far longer than a test may take."""
    assert sorted(waiting._bells) == list(range(world.size))
    reverse = comm.Split(0, -comm.rank)  # the last rank is the first
    comm.Barrier()
    rung = waiting._own.rung()
    comm.Barrier()
    bell(reverse, (reverse.rank + 1) % reverse.size)()
    assert waiting._own.sleep(rung, 600.0) == rung + 1
    comm.Barrier()
    reverse.Free()


@together
def test_a_message_wakes_a_rank_that_sleeps(world, comm, monkeypatch):
    """Its sleeps are made so long that the test would end otherwise."""
    monkeypatch.setattr(waiting, "SLEEP_S", (600.0, 600.0))
    backoff, number = Backoff(), np.zeros(1)
    comm.Barrier()
    if comm.rank == 0:
        for rank in range(1, comm.size):
            comm.Send(np.ones(1), rank, 1)
            bell(comm, rank)()
    else:
        backoff.wait(comm.Irecv(number, 0, 1))
        assert number[0] == 1


@together
def test_ranks_that_share_no_page_have_no_bells(world, comm, monkeypatch):
    """One rank cannot open it, as in a container of its own: then none has a bell, and all wait as they would without."""

    def refuse(path, size):
        raise PermissionError(path)

    if comm.rank == comm.size - 1:
        monkeypatch.setattr(waiting, "_open", refuse)
    try:
        hang_bells(world.local, world.neighbours)
        assert waiting._bells == {}
        assert waiting._own is None
        assert bell(comm, 0) is int
    finally:
        monkeypatch.undo()
        hang_bells(world.local, world.neighbours)
    assert len(waiting._bells) == comm.size


@together
def test_a_rank_of_another_job_has_no_bell(world, comm):
    inner = comm.Split(comm.rank == 0, comm.rank)
    other = inner.Create_intercomm(0, comm, 1 if comm.rank == 0 else 0, 5)
    assert bell(other, 0) is int
    assert bell(MPI.COMM_NULL, 0) is int
    other.Free()
    inner.Free()
