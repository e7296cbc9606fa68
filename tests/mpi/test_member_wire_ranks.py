"""Orders and models inside a group. On every rank (see ranks.py)."""

import numpy as np
import pytest
import torch

from asyncfeded.mpi.lifeline import Lifeline
from asyncfeded.mpi.seats import Part
from asyncfeded.mpi.waiting import Backoff
from asyncfeded.wire.client_wire import ClientWire
from asyncfeded.wire.group import Group
from asyncfeded.wire.member_wire import MemberWire
from asyncfeded.wire.messages import Order
from asyncfeded.wire.server_wire import ServerWire
from asyncfeded.wire.transfer import CHUNK, UNDER_WAY, peers
from mpi.ranks import RANKS, SERVER, bits, nothing_left, take, together


def gathered(comm):
    """All ranks but the server's as the group of one client."""
    inner = comm.Split(int(comm.rank == SERVER), comm.rank)
    if comm.rank == SERVER:
        return None
    group = Group(inner, Part(inner.rank, inner.size), Backoff(), Lifeline(inner), "group 0")
    group.connect(10.0)
    group.begun = True
    return group


@pytest.mark.skipif(RANKS < 3, reason="needs a group of two: 3 ranks")
@pytest.mark.parametrize("size", [5, (UNDER_WAY + 2) * CHUNK + 1], ids=str)
@together
def test_a_group_gets_what_its_leader_gets(world, comm, size):
    """Two rounds: every rank has the same order and model; the leader alone answers; all leave at the end."""
    group = gathered(comm)
    if group is None:
        wire = ServerWire(comm, peers(comm, [tuple(range(1, comm.size))]), size, Backoff(), 1)
        for number in range(2):
            weights = torch.from_numpy(bits(size, number).view(np.float32))
            wire.reply(Order(0, number, number, 3, 7, 0.5), weights, int)
            arrival = take(wire)
            assert arrival.weights.numpy().tobytes() == weights.numpy().tobytes()
            wire.release(arrival)
        assert wire.stop() == 0
    else:
        buffer = torch.zeros(size)
        leads = group.rank == 0
        wire = ClientWire(comm, buffer, Backoff(), group=group) if leads else MemberWire(group, [buffer.numpy()])
        for number in range(2):
            assert wire.receive() == Order(0, number, number, 3, 7, 0.5)
            assert buffer.numpy().tobytes() == bits(size, number).tobytes()
            wire.send(Order(0, number, number, 3), 1, 1, 0.0, 0.0, 0.0)
        assert wire.receive() is None
        wire.finish()
        assert not wire.ranks_lost
        group.comm.Barrier()
        group.lifeline.close()
    assert nothing_left(comm)
