"""A worker that falls silent when one server rank has its slice and another has not. On every rank (see ranks.py)."""

import numpy as np
import pytest
import torch

from asyncfeded.model.slices import cut
from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.waiting import Backoff
from asyncfeded.wire.client_wire import ClientWire
from asyncfeded.wire.messages import Arrival, Lost, Order, Refused
from asyncfeded.wire.slice_wire import FirstSliceWire, LeadingWire, SharedDeadlines, SliceWire
from asyncfeded.wire.transfer import CHUNK, WEIGHTS_TAG, peers
from mpi.ranks import RANKS, SERVERS, answer, header, nothing_left, send, server_ranks, take, together

pytestmark = pytest.mark.skipif(RANKS < 4, reason="needs two ranks of the server and two clients")
SIZE = 4 * CHUNK
FIRST, SECOND = (0, CHUNK), (CHUNK, 2 * CHUNK)


class Attentive(SharedDeadlines):
    """A deadline that does not depend on how busy the machine is: what the test sets."""

    limit = float("inf")

    def deadline_s(self, client, epochs):
        return self.limit if client == 0 else float("inf")


def wire_of(comm, ranks, measure):
    """What a rank of the server takes updates from, and the deadline of client 0 on the first."""
    workers = peers(comm, [(rank,) for rank in range(SERVERS, 4)])
    if comm.rank:
        return SliceWire(ranks, workers, Backoff(), measure, lambda: torch.zeros(ranks.mine.size)), None
    patience = Attentive(ranks, 1.0, 60.0)
    first = FirstSliceWire(comm, workers, ranks.mine.size, Backoff(), 2, measure, 0.0, patience, True)
    first.ranks, first.hosts = ranks, [str(worker) for worker in range(len(workers))]
    return LeadingWire(first, ranks, first), patience


@together
def test_an_update_that_reached_one_server_rank_counts_on_none_and_its_client_moves(world, comm):
    """The rest of it comes later, beside the update of the same client from its new worker."""
    ranks, aside = server_ranks(comm, SIZE), comm.Dup()
    if ranks:
        parts = []
        wire, patience = wire_of(comm, ranks, lambda client, w, start, stop: parts.append((client, (start, stop))))
        for client in range(2):
            wire.reply(Order(client, 0, 0, 1), torch.full((ranks.mine.size,), client + 1.0), int)
        wire.release(take(wire))
        if patience:
            is_sent = aside.Irecv(np.zeros(1), 2)
            while not is_sent.Test():
                assert wire.next() is None
                wire.pause()
            patience.limit = 0.2
        lost = take(wire)
        assert isinstance(lost, Lost)
        assert lost.clients == ()
        if patience:
            patience.limit = float("inf")
        moved = take(wire)
        assert isinstance(moved, Arrival)
        assert (moved.client, moved.weights.tolist()) == (0, [1.0] * ranks.mine.size)
        wire.release(moved)
        if patience:
            aside.Send(np.zeros(1), 2)
        refused = take(wire)
        assert isinstance(refused, Refused)
        assert (refused.client, refused.answered) == (-1, True)
        wire.stop()
        before = [(0, FIRST), (0, SECOND)][: 1 if comm.rank else 2]
        assert [part for part in parts if part[0] == 0] == [*before, (0, FIRST), (0, SECOND)]
    else:
        buffer = torch.zeros(SIZE)
        wire = ClientWire(comm, buffer, Backoff(), cut(SIZE, SERVERS))
        if comm.rank == 2:
            assert wire.receive() == Order(0, 0, 0, 1)
            chunk = np.full(CHUNK, 9, np.float32)
            send(comm, header(), chunk, chunk)
            comm.Send([chunk, MPI.FLOAT], 1, WEIGHTS_TAG + 1)
            aside.Send(np.zeros(1), 0)
            aside.Recv(np.zeros(1), 0)
            comm.Send([chunk, MPI.FLOAT], 1, WEIGHTS_TAG + 1)
            assert wire.receive() is None
            wire.finish()
        else:
            answer(wire, buffer)
    assert nothing_left(comm)
