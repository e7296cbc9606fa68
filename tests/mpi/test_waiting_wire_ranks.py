"""Bells between real ranks. All of them run on one host."""

import numpy as np
import pytest

from asyncfeded.mpi import waiting
from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.waiting import bell, hang_bells
from asyncfeded.wire.transfer import CHUNK, Peer, Receiving, Sending
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
def test_who_sends_a_model_rings_and_so_does_who_has_a_whole_chunk(world, comm):
    """A chunk and a small rest: the receiver is rung for twice, the sender once."""
    weights, rung = np.zeros(CHUNK + 1, np.float32), waiting._own.rung()
    comm.Barrier()
    if comm.rank == 0:
        sending = Sending(Peer(comm, 1, "rank 1"), weights)
        while not sending.go_on():
            pass
    elif comm.rank == 1:
        receiving = Receiving(Peer(comm, 0, "rank 0"), weights)
        while not receiving.complete:
            receiving.poll()
    comm.Barrier()
    assert waiting._own.rung() - rung == {0: 1, 1: 2}.get(comm.rank, 0)


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
