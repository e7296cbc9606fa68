"""Clients that come and go on the wire, with ranks of one job in the place of jobs that MPI connects. On every rank.

That MPI connects jobs, and what it then does, is seen in whole runs (tests/faults/test_joining.py).
"""

from types import SimpleNamespace

import pytest
import torch

from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.waiting import Backoff
from asyncfeded.wire.client_wire import ClientWire
from asyncfeded.wire.door import News
from asyncfeded.wire.messages import Joined, Lost, Order
from asyncfeded.wire.open_wire import OpenWire, absent
from asyncfeded.wire.transfer import CHUNK, Peer, peers
from mpi.ranks import RANKS, SERVER, answer, client, take, together


def guest(client):
    return SimpleNamespace(client=client, where="node2", line=SimpleNamespace(close=lambda: None, is_open=True))


def train(wire, buffers, client, round_):
    wire.reply(Order(client, round_, 0, 1), buffers[client], int)
    arrival = take(wire)
    assert (arrival.client, arrival.round) == (client, round_)
    wire.release(arrival)


@pytest.mark.skipif(RANKS < 3, reason="needs two clients: 3 ranks")
@pytest.mark.parametrize("size", [5, 2 * CHUNK])
@together
def test_a_client_joins_leaves_and_joins_again(world, comm, size):
    """Client 1 is absent at first. Rank 2 joins in its place, leaves after its second round, and joins once more."""
    pairs = [comm.Split(comm.rank in (0, 2), comm.rank) for _ in range(2)]  # what MPI makes when it connects two jobs
    if world.rank == SERVER:
        workers = peers(comm, [(1,)]) + absent([1])
        wire = OpenWire(comm, workers, size, Backoff(), 2, None)
        assert wire._free_clients() == [1]
        buffers = [torch.full((size,), float(i)) for i in range(2)]
        train(wire, buffers, 0, 0)
        first = 0
        for number, pair in enumerate(pairs):
            wire._attach(guest(1), Peer(pair, 1, "client 1"))
            assert (wire._free_clients(), wire.ranks_lost) == ([], False)
            train(wire, buffers, 1, first)
            train(wire, buffers, 0, number + 1)
            if number:
                break
            train(wire, buffers, 1, first + 1)
            wire.reply(Order(1, first + 2, 0, 1), buffers[1], int)  # it is not sent to a client that leaves
            assert take(wire) == Lost("client 1", (1,), "it has left", left=True)
            while wire._free_clients() != [1]:
                assert wire.next() is None
                wire.pause()
            first += 3
        wire.stop()
        assert not wire.ranks_lost
    elif world.rank == 2:
        buffer, rounds = torch.zeros(size), []
        for pair in pairs:
            wire = ClientWire(pair, buffer, Backoff(), leaves=lambda: rounds[-1] == 1)
            while (order := wire.receive()) is not None:
                rounds.append(order.round)
                wire.send(order, 1, 1, 0.0, 0.0, 0.0)
            wire.finish()
            pair.Disconnect()
        assert rounds == [0, 1, 3]
    elif world.rank == 1:
        answer(*client(comm, size))
    if world.rank not in (SERVER, 2):
        for pair in pairs:
            pair.Free()


@together
def test_nothing_is_sent_to_a_client_that_has_died(world, comm):
    """Neither before the server has heard of it, nor afterwards; a message to itself would be an answer here."""
    wire, dead = OpenWire(MPI.COMM_SELF, absent([0]), 5, Backoff(), 1, None), guest(0)
    wire._attach(dead, Peer(MPI.COMM_SELF, 0, "client 0"))
    dead.line.is_open = False
    wire.reply(Order(0, 0, 0, 1), torch.zeros(5), int)
    assert wire.next() is None
    wire._hear(News(dead, "gone"))
    assert take(wire) == Lost("client 0", (0,), "its process has ended, or cannot be reached")
    assert wire.next() is None
    assert wire.stop() == 0
    wire._header_requests[0].Cancel()
    wire._header_requests[0].Wait()
    wire._header_requests[0].Free()


def test_nobody_is_a_peer():
    (peer,) = absent([3])
    assert (peer.comm, peer.name) == (MPI.COMM_NULL, "client 3")
    assert not Joined(3, "node2")[2:]
