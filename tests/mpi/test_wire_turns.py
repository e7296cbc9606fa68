"""Whose update is taken first, where many real ranks send at a time. On every rank (see ranks.py)."""

import time

import numpy as np
import pytest
import torch

from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.waiting import Backoff
from asyncfeded.wire.client_wire import LOOK_S
from asyncfeded.wire.messages import Order
from asyncfeded.wire.server_wire import ServerWire
from asyncfeded.wire.transfer import CHUNK, WEIGHTS_TAG
from mpi.ranks import RANKS, SERVER, alone, answer, client, header, nothing_left, send, server, take, together


@pytest.mark.skipif(RANKS < 3, reason="needs two clients: 3 ranks")
@together
def test_a_client_that_stalls_in_the_middle_of_an_update_holds_nobody_up(world, comm):
    """Client 0 sends a header and one chunk of three, and the rest when all others have had five turns."""
    size = 3 * CHUNK
    everyone = comm.Dup()
    if world.rank == SERVER:
        wire, buffers = server(comm, size, pool=comm.size - 1), [torch.zeros(size) for _ in range(comm.size - 1)]
        for i in range(comm.size - 1):
            wire.reply(Order(i, 0, 0, 1), buffers[i], int)
        turns = np.zeros(comm.size - 1, int)
        while turns[1:].min() < 5:
            arrival = take(wire)
            assert arrival.client != 0
            turns[arrival.client] += 1
            wire.release(arrival)
            if turns[arrival.client] < 5:
                wire.reply(Order(arrival.client, 0, 0, 1), buffers[arrival.client], int)
        everyone.Send(np.zeros(1), 1)
        arrival = take(wire)
        assert arrival.client == 0
        assert torch.equal(arrival.weights, torch.arange(3.0).repeat_interleave(CHUNK))
        wire.release(arrival)
        wire.stop()
    else:
        wire, buffer = client(comm, size)
        if world.rank == 1:
            wire.receive()
            buffer.copy_(torch.arange(3.0).repeat_interleave(CHUNK))
            send(comm, header())
            first = comm.Isend([buffer.numpy()[:CHUNK], MPI.FLOAT], SERVER, WEIGHTS_TAG + 1)
            everyone.Recv(np.zeros(1), SERVER)
            first.Wait()
            for i in (1, 2):
                comm.Send([buffer.numpy()[i * CHUNK : (i + 1) * CHUNK], MPI.FLOAT], SERVER, WEIGHTS_TAG + 1)
            assert wire.receive() is None
            wire.finish()
        else:
            answer(wire, buffer)
    everyone.Free()


@pytest.mark.parametrize("size", [1, 100_000])
@together
def test_no_client_is_starved_when_all_flood_the_server(world, comm, size):
    """The server waits until all have sent, so that every client waits in every turn: one that served low ranks first would
    serve only these."""
    total = 60 * (comm.size - 1)

    def sent(i):  # the weights of its next update are there
        return comm.Iprobe(i + 1, WEIGHTS_TAG + int(counts[i]) + 1)

    if world.rank == SERVER:
        wire, counts = server(comm, size), np.zeros(comm.size - 1, int)
        buffers = [torch.zeros(size) for _ in counts]
        for i, buffer in enumerate(buffers):
            wire.reply(Order(i, 0, 0, 1), buffer, int)
        while not all(sent(i) for i in range(len(counts))):
            wire.pause()
        for _ in range(total):
            arrival = take(wire)
            counts[arrival.client] += 1
            wire.release(arrival)
            wire.reply(Order(arrival.client, 0, 0, 1), buffers[arrival.client], int)
            while not sent(arrival.client):
                wire.pause()
        wire.stop()
        assert counts.min() >= 30, counts
    else:
        answer(*client(comm, size))


@pytest.mark.skipif(RANKS < 4, reason="needs two clients that wait beside one that is served: 4 ranks")
@together
def test_who_came_first_is_served_first(world, comm):
    """Client 0 holds the only buffer. The others send one after the other, the highest rank first; each is there when
    its weights can be probed."""
    others = list(range(comm.size - 1, 1, -1))
    if world.rank == SERVER:
        wire, buffers = server(comm, 5, pool=1), [torch.zeros(5) for _ in range(comm.size - 1)]
        wire.reply(Order(0, 0, 0, 1), buffers[0], int)
        held = take(wire)
        for rank in others:
            wire.reply(Order(rank - 1, 0, 0, 1), buffers[rank - 1], int)
            while not comm.Iprobe(rank, WEIGHTS_TAG + 1):
                wire.pause()
            assert wire.next() is None  # sees the header, has no buffer
        wire.release(held)
        order, queues = [], []
        for _ in others:
            arrival = take(wire)
            order.append(arrival.client + 1)
            queues.append(arrival.queue)
            wire.release(arrival)
        wire.stop()
        assert order == others
        assert (held.queue, queues) == (0, list(range(len(others) - 1, -1, -1)))
    else:
        answer(*client(comm, 5))


@pytest.mark.skipif(RANKS < 3, reason="needs two clients: 3 ranks")
@together
def test_who_was_announced_first_is_served_first(world, comm):
    """The header of client 0 comes first, the weights of clients 0 and 1 later and so that one poll finds both."""
    everyone = comm.Dup()
    if world.rank == SERVER:
        wire, buffers = server(comm, 5), [torch.zeros(5) for _ in range(comm.size - 1)]
        wire.reply(Order(0, 0, 0, 1), buffers[0], int)
        wire.release(take(wire))  # now the other one of the two buffers is next
        wire.reply(Order(0, 1, 0, 1), buffers[0], int)
        everyone.Barrier()  # the second header of client 0 is sent
        assert wire.next() is None
        everyone.Barrier()  # client 0 may send its weights
        everyone.Recv(np.zeros(1), 1)  # and has: they came before this
        wire.reply(Order(1, 0, 0, 1), buffers[1], int)
        while not comm.Iprobe(2, WEIGHTS_TAG + 1):
            wire.pause()
        order = [take(wire)]
        order.append(take(wire))
        for arrival in order:
            wire.release(arrival)
        wire.stop()
        everyone.Free()
        assert [arrival.client for arrival in order] == [0, 1]
    else:
        wire, buffer = client(comm, 5)
        if world.rank == 1:
            wire.receive()
            wire.send(Order(0, 0, 0, 1), 1, 1, 0.0, 0.0, 0.0)
            wire.receive()
            send(comm, header(round=1))
        everyone.Barrier()
        everyone.Barrier()
        if world.rank == 1:
            comm.Send([buffer.numpy(), MPI.FLOAT], SERVER, WEIGHTS_TAG + 2)
            everyone.Send(np.zeros(1), SERVER)
        answer(wire, buffer)
        everyone.Free()


@pytest.mark.skipif(RANKS < 3, reason="needs two workers: 3 ranks")
@together
def test_a_worker_without_an_order_takes_one_that_waits_for_another(world, comm):
    """All orders are of clients of the first worker. While it trains, the others answer; an arrival tells whose it is."""
    workers = comm.size - 1
    if world.rank == SERVER:
        wire = ServerWire(comm, alone(comm), 1, Backoff(), 4 * workers, alike=[0] * workers)
        mine = [worker * workers for worker in range(3)]
        for client_id in mine:
            wire.reply(Order(client_id, 0, 0, 1), torch.full((1,), float(client_id)), int, due=float(client_id))
        arrivals = [take(wire) for _ in mine[1:]]
        assert sorted((arrival.client, float(arrival.weights)) for arrival in arrivals) == [
            (each, each) for each in mine[1:]
        ]
        comm.send(None, 1)
        arrivals.append(take(wire))
        assert arrivals[-1].client == 0
        for arrival in arrivals:
            wire.release(arrival)
        wire.stop()
    else:
        wire, buffer = client(comm, 1)
        if world.rank == 1:
            order = wire.receive()
            comm.recv(None, SERVER)
            wire.send(order, 1, 1, 0.0, 0.0, 0.0)
        answer(wire, buffer)


def ahead(comm, size):
    """The wire of a server on an ordered clock, and orders of six clients for each worker."""
    workers = comm.size - 1
    wire = ServerWire(comm, alone(comm), size, Backoff(), 6 * workers)
    for i in range(6 * workers):
        wire.reply(Order(i, 0, 0, 1), torch.full((size,), float(i)), int, due=float(i))
    return wire


def next_is_here(wire):
    """Wait for the order that follows the one that is trained now; it is not taken for a STOP."""
    while not wire._here:
        assert not wire.stopped()
        time.sleep(2 * LOOK_S)
    assert not wire.stopped()


@pytest.mark.parametrize("size", [1, 50_000, CHUNK])
@together
def test_a_quick_worker_has_its_next_order_before_it_answers(world, comm, size, monkeypatch):
    """It goes on at once, in the buffer of the update that is still on its way; all weights arrive to the bit."""
    monkeypatch.setattr("asyncfeded.wire.in_hand.SHORT_S", 60.0)
    if world.rank == SERVER:
        wire, seen = ahead(comm, size), []
        for _ in range(6 * (comm.size - 1)):
            arrival = take(wire)
            assert arrival.weights.eq(arrival.client + 0.5).all()
            assert max(map(len, wire._in_hand.orders)) <= 2
            seen.append(arrival.client)
            wire.release(arrival)
        assert sorted(seen) == list(range(6 * (comm.size - 1)))
        wire.stop()
    else:
        wire, buffer = client(comm, size)
        turns = 0
        while (order := wire.receive()) is not None:
            assert buffer.eq(float(order.client)).all()
            turns += 1
            if turns == 2:
                next_is_here(wire)
            buffer += 0.5
            wire.send(order, 1, 1, 0.0, 0.0, 0.0)
        wire.finish()
        assert turns == 6
    assert nothing_left(comm)


@pytest.mark.parametrize("size", [1, 50_000])
@together
def test_a_worker_that_has_its_next_order_sees_the_stop_while_it_trains(world, comm, size, monkeypatch):
    """The next order is received and not trained."""
    monkeypatch.setattr("asyncfeded.wire.in_hand.SHORT_S", 60.0)
    everyone = comm.Dup()
    if world.rank == SERVER:
        wire = ahead(comm, size)
        for _ in range(comm.size - 1):
            wire.release(take(wire))
        all_train = everyone.Ibarrier()
        while not all_train.Test():
            assert wire.next() is None
            wire.pause()
        assert wire.stop() == 0
    else:
        wire, _ = client(comm, size)
        wire.send(wire.receive(), 1, 1, 0.0, 0.0, 0.0)
        wire.receive()
        next_is_here(wire)
        everyone.Ibarrier().Wait()
        while not wire.stopped():
            time.sleep(1e-3)
        wire.finish()
    everyone.Free()
    assert nothing_left(comm)
