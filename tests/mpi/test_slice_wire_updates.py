"""A server of two ranks, and two clients: slices arrive to the bit, and both server ranks see the same. On every rank."""

import time

import numpy as np
import pytest
import torch

from asyncfeded.model.slices import cut
from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.waiting import Backoff
from asyncfeded.wire import server_wire
from asyncfeded.wire.client_wire import ClientWire
from asyncfeded.wire.messages import Arrival, Order, Refused, Stuck
from asyncfeded.wire.server_ranks import What
from asyncfeded.wire.slice_wire import FirstSliceWire, LeadingWire, SliceWire
from asyncfeded.wire.transfer import CHUNK, peers
from mpi.ranks import RANKS, SERVERS, bits, header, nothing_left, send, server_ranks, together

pytestmark = pytest.mark.skipif(RANKS < 4, reason="needs two ranks of the server and two clients")
ROUNDS = 3


def wire_of(comm, ranks, measure=None):
    """What a rank of the server takes updates from."""
    workers = peers(comm, [(rank,) for rank in range(SERVERS, comm.size)])
    if comm.rank:
        return SliceWire(ranks, workers, Backoff(), measure, lambda: torch.full((ranks.mine.size,), 7.0))
    first = FirstSliceWire(comm, workers, ranks.mine.size, Backoff(), len(workers), measure)
    first.ranks, first.hosts = ranks, [str(worker) for worker in range(len(workers))]
    return LeadingWire(first, ranks, first)


def take(wire):
    """The next event, waited for."""
    while (event := wire.next()) is None:
        wire.pause()
    return event


@pytest.mark.parametrize("size", [5, CHUNK, CHUNK + 1, 4 * CHUNK + 3])
@together
def test_slices_arrive_bit_for_bit_and_all_server_ranks_see_the_same(world, comm, size):
    ranks = server_ranks(comm, size)
    clients = comm.size - SERVERS
    if ranks:
        seen, parts = [], []
        held = slice(*ranks.mine)
        wire = wire_of(comm, ranks, lambda client, w, start, stop: parts.append((client, start, stop)))
        buffers = [torch.empty(ranks.mine.size) for _ in range(clients)]

        def reply(client, number):
            buffers[client].numpy().view(np.uint32)[:] = bits(size, client, number, 0)[held]
            wire.reply(Order(client, number, number, 1), buffers[client], int)

        for client in range(clients):
            reply(client, 0)
        for _ in range(clients * ROUNDS):
            arrival = take(wire)
            client, number = arrival.client, arrival.round
            assert np.array_equal(arrival.weights.numpy().view(np.uint32), bits(size, client, number, 1)[held])
            seen.append((*arrival[:9], arrival.measured, wire.now()))
            wire.release(arrival)
            if number + 1 < ROUNDS:
                reply(client, number + 1)
        if comm.rank == 0:
            whole = ranks.whole(torch.full((ranks.mine.size,), 6.0), torch.empty(size))
            assert whole.tolist() == [6.0] * ranks.mine.size + [7.0] * (size - ranks.mine.size)
            ranks.say(What.SCORE, [0.5, 0.25])
        assert wire.stop() == 0
        if comm.rank:
            assert wire.score.tolist() == [0.5, 0.25]
            assert isinstance(wire.next(), Stuck)  # the loop ends, whatever the reason
        assert len(parts) == clients * ROUNDS * ranks.mine.chunks
    else:
        buffer = torch.zeros(size)
        wire = ClientWire(comm, buffer, Backoff(), cut(size, SERVERS))
        while (order := wire.receive()) is not None:
            assert np.array_equal(buffer.numpy().view(np.uint32), bits(size, order.client, order.round, 0))
            buffer.numpy().view(np.uint32)[:] = bits(size, order.client, order.round, 1)
            wire.send(order, 1, 2, 0.5, 0.25, 0.125, measured=0.75 + order.round)
        wire.finish()
    told = comm.allgather(seen if ranks else None)
    assert told[0] == told[1]
    assert nothing_left(comm)


@together
def test_what_is_refused_is_refused_on_every_server_rank(world, comm):
    """An update of which the slice of the second server rank is too short, and one that answers another round."""
    size = 2 * CHUNK
    ranks = server_ranks(comm, size)
    if ranks:
        wire, reply, refused = wire_of(comm, ranks), torch.zeros(ranks.mine.size), []
        wire.reply(Order(0, 0, 0, 1), reply, int)
        for _ in range(2):
            event = take(wire)
            assert isinstance(event, Refused)
            assert event.answered
            refused.append(event)
            wire.reply(Order(0, 0, 0, 1), reply, int)
        if comm.rank == 0:
            assert "another length: 3 numbers came where 262144" in refused[0].reason
            assert "it answers round 5, expected 0" in refused[1].reason
        event = take(wire)
        assert isinstance(event, Arrival)
        wire.release(event)
        wire.stop()
    else:
        buffer = torch.zeros(size)
        wire = ClientWire(comm, buffer, Backoff(), cut(size, SERVERS))
        if comm.rank == SERVERS:
            assert wire.receive() == Order(0, 0, 0, 1)
            send(comm, header(), np.zeros(CHUNK, np.float32))
            comm.Send([np.zeros(3, np.float32), MPI.FLOAT], 1, 3)  # the chunk's tag of the first message
            wire._num_sent += 1
            order = wire.receive()
            wire.send(order._replace(round=5), 1, 1, 0.0, 0.0, 0.0)
            wire.send(wire.receive(), 1, 1, 0.0, 0.0, 0.0)
        assert wire.receive() is None
        wire.finish()
    assert nothing_left(comm)


@together
def test_as_many_updates_arrive_side_by_side_as_there_are_slices(world, comm, monkeypatch):
    """The first client sends its second slice only after an update of the other was taken; no transfer counts as stalled."""
    monkeypatch.setattr(server_wire, "STALLED_S", 1e9)
    chunk, told = np.zeros(CHUNK, np.float32), np.zeros(1, np.uint8)
    ranks = server_ranks(comm, 2 * CHUNK)
    if ranks:
        wire, deadline = wire_of(comm, ranks), time.monotonic() + 30
        for client in (0, 1):
            wire.reply(Order(client, 0, 0, 1), torch.zeros(CHUNK), int)
        for client in (1, 0):
            while (event := wire.next()) is None:
                assert time.monotonic() < deadline
                wire.pause()
            assert event.client == client
            if client and comm.rank == 0:
                comm.Send(told, SERVERS, 9)
            wire.release(event)
        wire.stop()
    else:
        wire = ClientWire(comm, torch.zeros(2 * CHUNK), Backoff(), cut(2 * CHUNK, SERVERS))
        order = wire.receive() if comm.rank < SERVERS + 2 else None
        if comm.rank == SERVERS:
            send(comm, header(), chunk)
            comm.Send(told, SERVERS + 1, 9)  # the first slice is here
            comm.Recv(told, 0, 9)
            comm.Send([chunk, MPI.FLOAT], 1, 3)
        elif order:
            comm.Recv(told, SERVERS, 9)
            wire.send(order, 1, 1, 0.0, 0.0, 0.0)
        assert wire.receive() is None
        wire.finish()
    assert nothing_left(comm)
