"""Real ranks that fall silent, and those that come back. On every rank (see ranks.py)."""

import re
import time

import numpy as np
import pytest
import torch

from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.waiting import Backoff
from asyncfeded.wire.deadlines import Deadlines
from asyncfeded.wire.messages import HEADER_TAG, Lost, Order, Refused
from asyncfeded.wire.server_wire import ServerWire
from asyncfeded.wire.transfer import CHUNK, WEIGHTS_TAG
from mpi.ranks import RANKS, SERVER, alone, answer, client, header, send, take, together


class Attentive(Deadlines):
    """A deadline that does not depend on how busy the machine is: what a test sets."""

    limit = float("inf")

    def deadline_s(self, client, epochs):
        return self.limit if client == 0 else float("inf")


@pytest.mark.skipif(RANKS < 3, reason="needs two clients: 3 ranks")
@pytest.mark.parametrize("reassign", [False, True])
@pytest.mark.parametrize("size", [5, 2 * CHUNK])
@together
def test_a_silent_worker_is_given_up_and_what_it_sends_later_is_refused(world, comm, size, reassign):
    """Client 0 falls silent, with a chunk of its update sent if it has two. Its order moves to another worker or nowhere."""
    everyone = comm.Dup()
    if world.rank == SERVER:
        patience, start = Attentive(1.0, 60.0), time.perf_counter()
        wire = ServerWire(
            comm,
            alone(comm),
            size,
            Backoff(),
            comm.size - 1,
            None,
            0.0,
            patience,
            reassign,
        )
        buffers = [torch.full((size,), float(i)) for i in range(comm.size - 1)]
        for i, buffer in enumerate(buffers):
            wire.reply(Order(i, 0, 0, 1), buffer, int)
        others = [take(wire) for _ in buffers[1:]]
        assert sorted(arrival.client for arrival in others) == list(range(1, comm.size - 1))
        for arrival in others:
            wire.release(arrival)
        everyone.Recv(np.zeros(1), 1)  # it has received its order
        patience.limit = 0.2
        lost = take(wire)
        passed_s = time.perf_counter() - start
        assert isinstance(lost, Lost)
        assert (lost.worker, lost.clients) == ("rank 1", () if reassign else (0,))
        words = r"0\.2 s are allowed \(more with a larger faults\.patience or faults\.patience_s\)"
        silent_s = re.fullmatch(rf"rank 1 was silent for (\d+\.\d) s, {words}", lost.reason)
        assert silent_s, lost.reason
        assert 0.2 <= float(silent_s[1]) <= passed_s + 0.05  # rounded
        assert wire.assignment.lost == {0}
        patience.limit = float("inf")
        if reassign:
            moved = take(wire)
            assert (moved.client, moved.weights.tolist()) == (0, [1.0] * size)
            wire.release(moved)
        everyone.Send(np.zeros(1), 1)
        who = -1 if reassign else 0
        assert take(wire) == Refused(who, "rank 1 sent an update: it came after its rank was given up", True)
        assert wire.assignment.lost == set()
        wire.reply(Order(0, 1, 0, 1), buffers[0], int)
        arrival = take(wire)
        assert (arrival.client, arrival.round) == (0, 1)
        wire.release(arrival)
        wire.stop()
    else:
        wire, buffer = client(comm, size)
        if world.rank == 1:
            wire.receive()
            weights = np.zeros(size, np.float32)
            chunks = np.split(weights, range(CHUNK, size, CHUNK))
            early = [comm.Isend([header(), MPI.BYTE], SERVER, HEADER_TAG)] if len(chunks) > 1 else []
            early += [comm.Isend([chunk, MPI.FLOAT], SERVER, WEIGHTS_TAG + 1) for chunk in chunks[:-1]]
            everyone.Send(np.zeros(1), SERVER)
            everyone.Recv(np.zeros(1), SERVER)
            if not early:
                send(comm, header(), number=1)
            comm.Send([chunks[-1], MPI.FLOAT], SERVER, WEIGHTS_TAG + 1)
            MPI.Request.Waitall(early)
            wire._num_sent += 1
            answer(wire, buffer)
        else:
            while (order := wire.receive()) is not None:
                buffer.fill_(1.0)
                wire.send(order, 1, 1, 0.0, 0.0, 0.0)
            wire.finish()
    everyone.Free()


def impatient(comm):
    """The wire of a server that gives client 0, who has an order, up after 0.2 s."""
    patience = Attentive(1.0, 60.0)
    wire = ServerWire(
        comm,
        alone(comm),
        5,
        Backoff(),
        comm.size - 1,
        None,
        0.0,
        patience,
    )
    wire.reply(Order(0, 0, 0, 1), torch.zeros(5), int)
    patience.limit = 0.2
    return wire


@together
def test_a_worker_that_is_lost_is_not_waited_for_at_the_end(world, comm):
    """Client 0 neither answers nor leaves until the server has closed its wire."""
    everyone = comm.Dup()
    if world.rank == SERVER:
        wire = impatient(comm)
        assert wire.stop() == 0
        assert wire.assignment.lost == {0}
        everyone.Barrier()
    else:
        wire, _ = client(comm, 5)
        wire.receive()
        if world.rank == 1:
            everyone.Barrier()
            assert wire.receive() is None
        else:
            wire.finish()
            everyone.Barrier()
    everyone.Free()


@pytest.mark.skipif(RANKS < 3, reason="needs two clients: 3 ranks")
@together
def test_a_worker_that_comes_back_during_the_stop_is_stopped_too(world, comm):
    """Client 1 leaves only when client 0, who was given up, has been told to stop."""
    everyone = comm.Dup()
    if world.rank == SERVER:
        wire = impatient(comm)
        assert isinstance(take(wire), Lost)
        everyone.Send(np.zeros(1), 1)
        assert wire.stop() == 0
        assert wire.assignment.lost == set()
    else:
        wire, _ = client(comm, 5)
        if world.rank == 1:
            order = wire.receive()
            everyone.Recv(np.zeros(1), SERVER)
            wire.send(order, 1, 1, 0.0, 0.0, 0.0)
        elif world.rank == 2:
            everyone.Recv(np.zeros(1), 1)
        assert wire.receive() is None
        if world.rank == 1:
            everyone.Send(np.zeros(1), 2)
        wire.finish()
        assert not wire.ranks_lost
    everyone.Free()


@pytest.mark.skipif(RANKS < 3, reason="needs two workers: 3 ranks")
@together
def test_both_orders_of_a_silent_worker_move_and_both_of_its_answers_are_refused(world, comm, monkeypatch):
    """The first worker answers for one client and has the orders of two more when it falls silent."""
    monkeypatch.setattr("asyncfeded.wire.in_hand.SHORT_S", 60.0)
    everyone, workers = comm.Dup(), comm.size - 1
    if world.rank == SERVER:
        patience = Attentive(1.0, 60.0)
        wire = ServerWire(comm, alone(comm), 5, Backoff(), 6 * workers, None, 0.0, patience, reassign=True)
        mine = [5 * workers, *range(0, 5 * workers, workers)]
        for due, number in enumerate(mine):
            wire.reply(Order(number, 0, 0, 1), torch.zeros(5), int, due=float(due))
        events = [take(wire)]
        assert [each.order.client for each in wire._in_hand.orders[0]] == [0, workers]
        patience.limit = 0.2
        lost = take(wire)
        assert isinstance(lost, Lost)
        assert lost.clients == ()
        patience.limit = float("inf")
        events += [take(wire) for _ in mine[1:]]
        assert sorted(event.client for event in events) == sorted(mine)
        for event in events:
            wire.release(event)
        everyone.Send(np.zeros(1), 1)
        late = Refused(-1, "rank 1 sent an update: it came after its rank was given up", True)
        assert [take(wire), take(wire)] == [late, late]
        assert wire.assignment.lost == set()
        wire.stop()
    else:
        wire, buffer = client(comm, 5)
        if world.rank == 1:
            wire.send(wire.receive(), 1, 1, 0.0, 0.0, 0.0)
            order = wire.receive()
            everyone.Recv(np.zeros(1), SERVER)
            wire.send(order, 1, 1, 0.0, 0.0, 0.0)
        answer(wire, buffer)
    everyone.Free()
