"""Real messages between real ranks: every test here runs on all ranks of a job at a time (see ../test_wire.py).

A test's body may fail on one rank alone; `together` tells the others, so that all fail with the same text.
"""

import functools
import os
import socket
import time

import numpy as np
import pytest
import torch

from asyncfeded.model.flat import Entry, Layout
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.mpi import launcher
from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.world import (
    PROTOCOL,
    Backoff,
    RefusedError,
    compare_statements,
    gather_places,
    join_job,
    leave_job,
    make_statement,
    seat_server,
    share_cores,
)
from asyncfeded.wire.client_wire import ClientWire
from asyncfeded.wire.deadlines import Deadlines
from asyncfeded.wire.messages import HEADER, HEADER_TAG, LAST, MAGIC, Arrival, Lost, Order, Refused
from asyncfeded.wire.server_wire import ServerWire
from asyncfeded.wire.staging import Staging
from asyncfeded.wire.transfer import CHUNK, UNDER_WAY, WEIGHTS_TAG, Receiving, Sending

RANKS = (launcher.launched_by() or ("", 1, 0))[1]
if RANKS < 2:
    pytest.skip("needs ranks: mpiexec -n 4 python -m pytest tests/mpi", allow_module_level=True)
BACKOFF = {"spin": False}
SERVER = 0


@pytest.fixture(scope="session")
def world():
    """This rank in its job."""
    yield join_job()
    leave_job()


@pytest.fixture
def comm(world):
    """A communicator of the test's own, on which nothing may be left when it has ended."""
    comm = world.comm.Dup()
    yield comm
    comm.Free()


def together(body):
    """A test that fails on all ranks, if it fails on one, with the text of every failure."""

    @functools.wraps(body)
    def test(world, *args, **kwargs):
        failure = None
        try:
            body(world, *args, **kwargs)
        except BaseException as error:
            failure = f"rank {world.rank}: {type(error).__name__}: {error}"
        failures = [f for f in world.comm.allgather(failure) if f]
        assert not failures, "\n".join(failures)

    return test


def server(comm, size, pool=2, measure=None):
    return ServerWire(comm, comm.size - 1, size, Backoff(**BACKOFF), pool, measure)


def client(comm, size):
    """A client's wire and its buffer."""
    buffer = torch.zeros(size)
    return ClientWire(comm, buffer, Backoff(**BACKOFF)), buffer


def bits(size, *key):
    """Weights of any bit pattern, NaNs among them, that follow from the key."""
    return np.random.default_rng(key).integers(0, 2**32, size, np.uint32)


def take(wire):
    """The next arrival, waited for."""
    while (arrival := wire.next()) is None:
        wire.pause()
    return arrival


def answer(wire, buffer):
    """A client that answers every order at once until it is stopped; the number of updates sent."""
    sent = 0
    while (order := wire.receive()) is not None:
        wire.send(order, 1, 1, 0.0, 0.0, 0.0)
        sent += 1
    wire.finish()
    return sent


def header(**fields):
    """The header of an update that answers Order(0, 0, 0, 1), but for these fields."""
    made = np.zeros(1, HEADER)
    for name, value in ({"magic": MAGIC, "protocol": PROTOCOL, "epochs": 1, "samples": 1, "steps": 1} | fields).items():
        made[name] = value
    return made


def send(comm, made, *chunks, number=1):
    """An update as it should not be: a header, and float32 arrays as the chunks of the client's so-manieth message."""
    comm.Send([made.view(np.uint8), MPI.BYTE], SERVER, HEADER_TAG)
    for chunk in chunks:
        comm.Send([chunk, MPI.FLOAT], SERVER, WEIGHTS_TAG + number)


def nothing_left(comm):
    """Whether no message waits on any rank, asked when all ranks have done their part."""
    comm.Barrier()
    time.sleep(0.01)
    return not comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG)


@pytest.mark.parametrize("seed", range(3))
@together
def test_weights_and_numbers_arrive_bit_for_bit(world, comm, seed):
    """Models of few elements, of about a chunk and of 6 chunks in random order on one communicator, some rounds each."""
    for turn, size in enumerate(
        np.random.default_rng(seed).choice([1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 1_500_000], 8).tolist()
    ):
        rounds = 3
        if world.rank == SERVER:
            wire = server(comm, size)
            buffers = [torch.empty(size) for _ in range(comm.size - 1)]
            done = [0] * len(buffers)
            for i, buffer in enumerate(buffers):
                buffer.numpy().view(np.uint32)[:] = bits(size, seed, turn, i, 0, 0)
                wire.reply(Order(i, 0, 2**40, i + 1), buffer, int)
            while min(done) < rounds:
                arrival = take(wire)
                i, n = arrival.client, done[arrival.client]
                numbers = (i, 7 * n, 2**40 + n, i + 1 + n, 2**41 + i, 2**30 + n, n + 0.1, n + 0.2, n + 0.3)
                assert arrival[:9] == numbers
                assert np.array_equal(arrival.weights.numpy().view(np.uint32), bits(size, seed, turn, i, n, 1))
                wire.release(arrival)
                done[i] += 1
                if done[i] < rounds:
                    buffers[i].numpy().view(np.uint32)[:] = bits(size, seed, turn, i, done[i], 0)
                    wire.reply(Order(i, 7 * done[i], 2**40 + done[i], i + 1 + done[i]), buffers[i], int)
            assert wire.stop() == 0
        else:
            wire, buffer = client(comm, size)
            i, n = world.rank - 1, 0
            while (order := wire.receive()) is not None:
                assert order == (i, 7 * n, 2**40 + n, i + 1 + n)
                assert np.array_equal(buffer.numpy().view(np.uint32), bits(size, seed, turn, i, n, 0))
                buffer.numpy().view(np.uint32)[:] = bits(size, seed, turn, i, n, 1)
                wire.send(order, 2**41 + i, 2**30 + n, n + 0.1, n + 0.2, n + 0.3)
                n += 1
            wire.finish()
            assert n == rounds
    assert nothing_left(comm)


@pytest.mark.parametrize("size", [1, CHUNK, 3 * CHUNK + 1])
@together
def test_a_model_that_lies_elsewhere_is_staged(world, comm, size):
    """Every client adds 1 to all that it is sent: so the server finds, and so it grows."""
    rounds, workers = 4, comm.size - 1
    if world.rank == SERVER:
        model = GlobalModel(torch.zeros(size), Layout((Entry("w", (size,), 0),), size, size), workers)
        staging = Staging(model)
        staging.below = server(comm, size, workers, staging.measure)
        for i in range(workers):
            staging.reply(Order(i, 0, 0, 1), model.base[i], functools.partial(model.hand_out, i))
        for number in range(1, rounds * workers + 1):
            arrival = take(staging)
            i = arrival.client
            moved, change = model.distances(i, arrival.weights)
            assert (moved, change) == pytest.approx(((model.version - arrival.base_version) * size**0.5, size**0.5))
            model.merge(i, arrival.weights, 1.0)
            if arrival.round < rounds - 1:
                order = Order(i, arrival.round + 1, model.version, 1)
                staging.reply(order, model.base[i], functools.partial(model.hand_out, i))
            model.finish_merge()
            staging.release(arrival)
            assert model.x.eq(number).all()
        assert staging.stop() == 0
    else:
        wire, buffer = client(comm, size)
        while (order := wire.receive()) is not None:
            assert buffer.eq(float(order.version)).all()
            buffer += 1
            wire.send(order, 1, 1, 0.0, 0.0, 0.0)
        wire.finish()
    assert nothing_left(comm)


@pytest.mark.parametrize("size", [1, CHUNK, 3 * CHUNK + 1])
@together
def test_an_update_is_measured_part_by_part_and_a_reply_made_so(world, comm, size):
    """Parts come in order, each when it is there: what `measure` sees of w is what was sent."""
    ends = [*range(CHUNK, size, CHUNK), size]
    if world.rank == SERVER:
        seen, made = [], []

        def measure(client, w, start, stop):
            assert torch.equal(w[start:stop], torch.full((stop - start,), 2.0 + client))
            seen.append((client, start, stop))

        def ready(stop):
            buffer[:stop] = 1.0
            made.append(stop)

        wire = server(comm, size, measure=measure)
        buffer = torch.zeros(size)
        for i in range(comm.size - 1):
            made.clear()
            buffer = torch.zeros(size)
            wire.reply(Order(i, 0, 0, 1), buffer, ready)
            assert made == ends
            wire.release(take(wire))
            assert seen == [(i, start, stop) for start, stop in zip([0, *ends], ends, strict=False)]
            seen.clear()
        wire.stop()
    else:
        wire, buffer = client(comm, size)
        order = wire.receive()
        received = buffer.clone()
        buffer.fill_(2.0 + order.client)
        wire.send(order, 1, 1, 0.0, 0.0, 0.0)
        assert wire.receive() is None
        wire.finish()
        assert torch.equal(received, torch.ones(size))


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
    """The server is the slowest, so that every client waits in every turn: one that served low ranks first would serve
    only these."""
    total = 60 * (comm.size - 1)
    if world.rank == SERVER:
        wire, counts = server(comm, size), np.zeros(comm.size - 1, int)
        buffers = [torch.zeros(size) for _ in counts]
        for i, buffer in enumerate(buffers):
            wire.reply(Order(i, 0, 0, 1), buffer, int)
        for _ in range(total):
            arrival = take(wire)
            counts[arrival.client] += 1
            wire.release(arrival)
            wire.reply(Order(arrival.client, 0, 0, 1), buffers[arrival.client], int)
            time.sleep(0.003)
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


@pytest.mark.parametrize("size", [1, 1_000_000])
@together
def test_a_stop_while_updates_are_under_way_leaves_nothing_unreceived(world, comm, size):
    """Ten times, after another number of updates each; clients send as fast as they can."""
    for updates in range(10):
        taken, sent, discarded = updates, 0, 0
        if world.rank == SERVER:
            wire, buffers = server(comm, size), [torch.zeros(size) for _ in range(comm.size - 1)]
            for i, buffer in enumerate(buffers):
                wire.reply(Order(i, 0, 0, 1), buffer, int)
            for _ in range(updates):
                arrival = take(wire)
                wire.release(arrival)
                wire.reply(Order(arrival.client, 0, 0, 1), buffers[arrival.client], int)
            discarded = wire.stop()
        else:
            sent = answer(*client(comm, size))
        assert nothing_left(comm)
        assert comm.allreduce(sent) == taken + comm.allreduce(discarded)


@together
def test_a_client_that_trains_sees_the_stop(world, comm):
    everyone = comm.Dup()
    if world.rank == SERVER:
        wire, buffers = server(comm, 5), [torch.zeros(5) for _ in range(comm.size - 1)]
        for i, buffer in enumerate(buffers):
            wire.reply(Order(i, 0, 0, 1), buffer, int)
        everyone.Barrier()
        discarded = wire.stop()
        everyone.Free()
        assert discarded == 0
    else:
        wire, _ = client(comm, 5)
        order = wire.receive()
        early = wire.stopped()
        everyone.Barrier()
        while not wire.stopped():
            time.sleep(0.001)
        again = wire.stopped()
        wire.finish()
        everyone.Free()
        assert order is not None
        assert (early, again) == (False, True)
    assert nothing_left(comm)


@together
def test_a_client_that_was_never_answered_is_stopped(world, comm):
    if world.rank == SERVER:
        assert server(comm, 5).stop() == 0
    else:
        wire, _ = client(comm, 5)
        assert wire.receive() is None
        wire.finish()
    assert nothing_left(comm)


@together
def test_one_receive_buffer_serves_all_clients_whose_updates_do_not_stall(world, comm, monkeypatch):
    monkeypatch.setattr("asyncfeded.wire.server_wire.STALLED_S", 60.0)
    if world.rank == SERVER:
        wire, places = server(comm, 1000, comm.size - 1, lambda *part: None), set()
        buffers = [torch.zeros(1000) for _ in range(comm.size - 1)]
        for i, buffer in enumerate(buffers):
            wire.reply(Order(i, 0, 0, 1), buffer, int)
        for _ in range(50):
            arrival = take(wire)
            places.add(arrival.weights.data_ptr())
            wire.release(arrival)
            wire.reply(Order(arrival.client, 0, 0, 1), buffers[arrival.client], int)
        wire.stop()
        assert wire.buffer_bytes == 4 * 1000 * len(places)
        assert len(places) == 1
    else:
        answer(*client(comm, 1000))


# What is refused


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"client": 1}, "sent an update: it is from client 1, who was not asked"),
        ({"client": -7}, "sent an update: it is from client -7, who was not asked"),
        ({"round": 1}, "sent an update: it answers round 1, expected 0"),
        ({"version": 1}, "sent an update: it started from version 1, which the client does not hold: it was sent 0"),
        ({"epochs": 2}, "sent an update: it has done 2 epochs, expected 1"),
        ({"samples": 0}, "sent an update: it has done 1 steps and seen 0 samples"),
        ({"steps": -1}, "sent an update: it has done -1 steps and seen 1 samples"),
        ({"wait_s": np.nan}, "sent an update: it took 0.0 s and waited nan s"),
    ],
)
@together
def test_an_update_that_answers_no_order_is_refused_with_the_reason(world, comm, fields, reason):
    """And the next one, which does, is taken."""
    if world.rank == SERVER:
        measured = []
        wire, buffer = server(comm, 5, measure=lambda *part: measured.append(part)), torch.zeros(5)
        wire.reply(Order(0, 0, 0, 1), buffer, int)
        assert take(wire) == Refused(0, f"rank 1 {reason}", True)
        assert measured == []
        wire.reply(Order(0, 1, 0, 1), buffer, int)
        arrival = take(wire)
        assert arrival.weights.tolist() == [2.0] * 5
        wire.release(arrival)
        wire.stop()
    else:
        wire, buffer = client(comm, 5)
        if wire.receive() is not None:
            send(comm, header(**fields), np.ones(5, np.float32))
            wire._said += 1
            order = wire.receive()
            buffer.fill_(2.0)
            wire.send(order, 1, 1, 0.0, 0.0, 0.0)
            wire.receive()
        wire.finish()
    assert nothing_left(comm)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"magic": 1}, "magic 0x1, expected 0xa5f3ded0"),
        ({"protocol": 99}, "protocol 99, expected 1"),
        ({"flags": 8}, "flags 0x8, expected 0 or 0x2"),
    ],
)
@together
def test_a_foreign_header_is_refused_and_changes_nothing(world, comm, fields, reason):
    if world.rank == SERVER:
        wire, buffer = server(comm, 5), torch.zeros(5)
        wire.reply(Order(0, 0, 0, 1), buffer, int)
        assert take(wire) == Refused(0, f"rank 1 sent a header with {reason}", False)
        wire.release(take(wire))
        wire.stop()
    else:
        wire, _ = client(comm, 5)
        if (order := wire.receive()) is not None:
            send(comm, header(**fields))
            wire._said += 1
            wire.send(order, 1, 1, 0.0, 0.0, 0.0)
            wire.receive()
        wire.finish()


@pytest.mark.parametrize("length", [10, HEADER.itemsize + 36])
@together
def test_a_header_of_another_length_is_refused_and_the_next_is_read(world, comm, length):
    if world.rank == SERVER:
        wire, buffer = server(comm, 5), torch.zeros(5)
        wire.reply(Order(0, 0, 0, 1), buffer, int)
        event = take(wire)
        assert isinstance(event, Refused), event
        wire.reply(Order(0, 1, 0, 1), buffer, int)
        arrival = take(wire)
        assert arrival.weights.tolist() == [2.0] * 5
        wire.release(arrival)
        wire.stop()
    else:
        wire, buffer = client(comm, 5)
        if wire.receive() is not None:
            made = np.zeros(length, np.uint8)
            made[: HEADER.itemsize] = header(round=7).view(np.uint8)[:length]
            comm.Send([made, MPI.BYTE], SERVER, HEADER_TAG)
            comm.Send([np.ones(5, np.float32), MPI.FLOAT], SERVER, WEIGHTS_TAG + 1)
            wire._said += 1
            order = wire.receive()
            buffer.fill_(2.0)
            wire.send(order, 1, 1, 0.0, 0.0, 0.0)
            wire.receive()
        wire.finish()
    assert nothing_left(comm)


@pytest.mark.parametrize(("lengths", "got"), [([3], 3), ([7], "more"), ([0], 0)])
@together
def test_an_update_of_another_length_is_refused(world, comm, lengths, got):
    if world.rank == SERVER:
        wire, buffer = server(comm, 5), torch.zeros(5)
        wire.reply(Order(0, 0, 0, 1), buffer, int)
        reason = f"it is of another length: {got} numbers came where 5 were expected"
        assert take(wire) == Refused(0, f"rank 1 sent an update: {reason}", True)
        wire.stop()
    else:
        wire, _ = client(comm, 5)
        if wire.receive() is not None:
            send(comm, header(), *[np.ones(n, np.float32) for n in lengths])
            wire.receive()
        wire.finish()


@together
def test_a_second_answer_is_refused_and_answered_by_nothing(world, comm):
    """And what is left of a message that was too long is not taken for a part of the next."""
    one, two = np.ones(5, np.float32), np.full(5, 2, np.float32)
    if world.rank == SERVER:
        wire, buffer = server(comm, 5), torch.zeros(5)
        wire.reply(Order(0, 0, 0, 1), buffer, int)
        wire.release(take(wire))
        assert take(wire) == Refused(-1, "rank 1 sent an update: it is a second answer, to round 0", True)
        wire.reply(Order(0, 1, 0, 1), buffer, int)
        arrival = take(wire)
        assert arrival.weights.tolist() == [2.0] * 5
        wire.release(arrival)
        wire.stop()
        comm.Recv(np.zeros(5, np.float32), 1, WEIGHTS_TAG + 1)
    else:
        wire, _ = client(comm, 5)
        if wire.receive() is not None:
            send(comm, header(), one, one)
            send(comm, header(), one, number=2)
            wire.receive()
            send(comm, header(round=1), two, number=3)
            wire.receive()
        wire.finish()


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
        patience = Attentive(1.0, 1.0)
        wire = ServerWire(comm, comm.size - 1, size, Backoff(**BACKOFF), comm.size - 1, None, 0.0, patience, reassign)
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
        assert isinstance(lost, Lost)
        assert (lost.worker, lost.clients) == (0, () if reassign else (0,))
        assert lost.reason.startswith("rank 1 was silent for 0.")
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
            wire._said += 1
            answer(wire, buffer)
        else:
            while (order := wire.receive()) is not None:
                buffer.fill_(1.0)
                wire.send(order, 1, 1, 0.0, 0.0, 0.0)
            wire.finish()
    everyone.Free()


@together
def test_a_worker_that_is_lost_is_not_waited_for_at_the_end(world, comm):
    """Client 0 neither answers nor leaves until the server has closed its wire."""
    everyone = comm.Dup()
    if world.rank == SERVER:
        patience = Attentive(1.0, 1.0)
        wire = ServerWire(comm, comm.size - 1, 5, Backoff(**BACKOFF), comm.size - 1, None, 0.0, patience)
        wire.reply(Order(0, 0, 0, 1), torch.zeros(5), int)
        patience.limit = 0.2
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
        patience = Attentive(1.0, 60.0)
        wire = ServerWire(comm, comm.size - 1, 5, Backoff(**BACKOFF), comm.size - 1, None, 0.0, patience)
        wire.reply(Order(0, 0, 0, 1), torch.zeros(5), int)
        patience.limit = 0.2
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


FUZZ = 10_000 if RANKS == 2 else 2_000


@together
def test_mutated_updates_are_refused_and_none_is_merged(world, comm):
    """Client 0 sends headers with a field of any value, or any bytes, and bodies of another length; the others train on."""
    size, rng = 7, np.random.default_rng(0)
    if world.rank == SERVER:
        wire, buffers = server(comm, size, pool=comm.size - 1), [torch.zeros(size) for _ in range(comm.size - 1)]
        rounds = [0] * len(buffers)
        for i, buffer in enumerate(buffers):
            wire.reply(Order(i, 0, 0, 1), buffer, int)
        refused = taken = 0
        while refused < FUZZ:
            event = take(wire)
            if isinstance(event, Refused):
                refused += 1
                if event.client == 0 and event.answered:
                    rounds[0] += 1
                    wire.reply(Order(0, rounds[0], 0, 1), buffers[0], int)
            else:
                assert isinstance(event, Arrival)
                assert event.client != 0, event
                taken += 1
                wire.release(event)
                rounds[event.client] += 1
                wire.reply(Order(event.client, rounds[event.client], 0, 1), buffers[event.client], int)
        wire.stop()
        assert taken > 0 or comm.size == 2
        while comm.Iprobe(1, MPI.ANY_TAG, status := MPI.Status()):  # bodies behind headers of which nobody knew what follows
            comm.Recv(np.zeros(21, np.float32), 1, status.Get_tag())
    else:
        wire, buffer = client(comm, size)
        if world.rank == 1:
            while (order := wire.receive()) is not None:
                made, count = mutated(rng, order, size)
                wire._said += 1
                send(comm, made, np.ones(count, np.float32), number=wire._said)
                while made["magic"] != MAGIC or made["protocol"] != PROTOCOL or made["flags"]:  # not answered
                    made, count = mutated(rng, order, size)
                    wire._said += 1
                    send(comm, made, np.ones(count, np.float32), number=wire._said)
            wire.finish()
        else:
            answer(wire, buffer)


def mutated(rng, order, size):
    """A header and a number of elements that together are no answer to an order."""
    made, count = header(client=order.client, round=order.round, version=order.version), size
    kind = rng.integers(3)
    if kind == 0:
        count = int(rng.choice([*range(size), size + 1, 3 * size]))
    elif kind == 1:
        made.view(np.uint8)[:] = rng.integers(0, 256, HEADER.itemsize, np.uint8)
    else:
        name = rng.choice(["magic", "protocol", "flags", "client", "epochs", "round", "steps", "version", "samples"])
        before = int(made[name][0])
        bits = made[name].view(np.uint8)
        bits[:] = rng.integers(0, 256, len(bits), np.uint8)
        if name in ("steps", "samples"):  # of which any from 1 on will do
            made[name] = -abs(int(made[name][0]))
        if name == "flags" and made[name] == LAST:
            made[name] = 0
        if made[name][0] == before:
            count = 0
    return made, count


# One model on its way


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, (UNDER_WAY + 3) * CHUNK + 5])
@together
def test_parts_arrive_in_order_and_few_are_under_way(world, comm, size):
    """The receiver posts nothing for a while: the sender stops at `UNDER_WAY` messages, the header among them."""
    weights = np.arange(size, dtype=np.float32) if world.rank == 1 else np.zeros(size, np.float32)
    if world.rank == 1:
        sending = Sending(comm, weights, 0, comm.Isend([np.zeros(64, np.uint8), MPI.BYTE], 0, 1))
        for ready in (*range(CHUNK, size, CHUNK), size):
            sending.push(ready)
            assert len(sending._requests) <= UNDER_WAY
        comm.Barrier()
        while not (sending.push(size) and sending.sent()):
            time.sleep(1e-4)
    else:
        comm.Barrier()
    if world.rank == 0:
        comm.Recv([np.zeros(64, np.uint8), MPI.BYTE], 1, 1)
        receiving, parts = Receiving(comm, weights, 1), []
        while not receiving.complete:
            if (part := receiving.poll()) is not None:
                assert np.array_equal(weights[slice(*part)], np.arange(*part, dtype=np.float32))
                parts.append(part)
        assert parts == [(start, min(start + CHUNK, size)) for start in range(0, size, CHUNK)]
        assert receiving.poll() is None


@together
def test_what_is_not_ready_is_not_sent(world, comm):
    if world.rank == 1:
        weights = np.zeros(2 * CHUNK, np.float32)
        sending = Sending(comm, weights, 0, comm.Isend([np.zeros(64, np.uint8), MPI.BYTE], 0, 1))
        assert sending.push(CHUNK)
        assert not sending.sent()
        comm.Recv(np.zeros(1), 0)  # the first chunk is there
        weights[CHUNK:] = 7.0
        assert sending.push(2 * CHUNK)
        while not sending.sent():
            time.sleep(1e-4)
    if world.rank == 0:
        comm.Recv([np.zeros(64, np.uint8), MPI.BYTE], 1, 1)
        weights = np.ones(2 * CHUNK, np.float32)
        receiving = Receiving(comm, weights, 1)
        while receiving.done < CHUNK:
            receiving.poll()
        assert not comm.Iprobe(1, WEIGHTS_TAG)
        comm.Send(np.zeros(1), 1)
        while not receiving.complete:
            receiving.poll()
        assert weights[:CHUNK].max() == 0.0
        assert weights[CHUNK:].min() == 7.0


# Before training


def refusal(world, said):
    """The text with which `agree` refuses, after a look whether all ranks were told the same."""
    with pytest.raises(RefusedError) as refused:
        compare_statements(world, said)
    texts = world.comm.allgather(str(refused.value))
    assert set(texts) == {texts[0]}
    return texts[0]


@together
def test_equal_statements_agree(world):
    compare_statements(world, make_statement(config=b"c" * 32, layout=b"l" * 32, num_params=10, size=12))


@together
def test_every_rank_knows_the_hosts_of_all(world):
    assert world.hosts == [socket.gethostname()] * world.size


@pytest.mark.parametrize(
    ("field", "value", "shown", "what"),
    [
        ("protocol", 7, "7", "speak different protocols"),
        ("config", 255, "ff" * 6, "have different configs"),
        ("dtype", b"float16", "float16", "hold the model in different types"),
        ("num_params", 11, "11", "have models of different size"),
        ("size", 13, "13", "have models of different size"),
        ("layout", 255, "ff" * 6, "have models with different parameters"),
    ],
)
@together
def test_a_rank_that_differs_is_named_to_all_with_both_values(world, field, value, shown, what):
    said = make_statement(num_params=10, size=12)
    odd = world.size - 1
    if world.rank == odd:
        said[field] = value
    text = refusal(world, said)
    assert text.startswith(f"rank 0 on {world.hosts[0]} and rank {odd} on {world.hosts[0]} {what} ({field}: ")
    assert f" and {shown}); " in text


@together
def test_a_problem_of_one_rank_is_told_to_all_with_its_rank_and_host(world):
    odd = world.size - 1
    text = refusal(world, make_statement(problem="no Käse" if world.rank == odd else ""))
    assert text == f"rank {odd} on {world.hosts[0]}: no Käse"


@together
def test_a_problem_that_all_ranks_have_is_told_once(world):
    assert refusal(world, make_statement(problem="no file")) == "no file"


@together
def test_different_problems_are_all_told(world):
    text = refusal(world, make_statement(problem=f"problem {world.rank}"))
    assert text.splitlines() == ["problem 0"] + [f"rank {r} on {world.hosts[0]}: problem {r}" for r in range(1, world.size)]


@together
def test_a_long_problem_is_cut_and_still_told(world):
    text = refusal(world, make_statement(problem="ü" * 5000))
    assert text.startswith("ü" * 1023)
    assert len(text) <= 1025


@together
def test_the_ranks_of_a_host_share_its_cores(world):
    """All ranks run on this host."""
    cores = world.comm.allgather(world.cores)
    assert min(cores) > 0
    assert sum(cores) <= len(os.sched_getaffinity(0)) + 1e-9
    assert world.threads == max(1, int(world.cores))
    assert world.crowded == (min(cores) < 1 - 1e-9)
    assert world.neighbours == list(range(world.size))


@together
def test_cores_are_shared_anew_when_ranks_have_bound_themselves(world):
    """All but rank 0 leave the first core."""
    may = sorted(os.sched_getaffinity(0))
    if len(may) < 2:
        return
    try:
        if world.rank:
            os.sched_setaffinity(0, may[1:])
        cores = world.comm.allgather(share_cores(world).cores)
    finally:
        os.sched_setaffinity(0, may)
    others = (len(may) - 1) / world.size
    assert cores == pytest.approx([1 + others] + [others] * (world.size - 1))


@together
def test_any_rank_may_sit_first(world):
    server = world.size - 1
    seated = seat_server(world, server)
    assert seated.comm.allgather(world.rank) == [server, *range(server)]
    assert seated.rank == (world.rank + 1) % world.size
    assert seated.neighbours == list(range(world.size))
    seated.comm.Free()
    assert seat_server(world, 0) is world


@together
def test_every_rank_has_the_map_of_all(world):
    found = gather_places(world, "server" if world.rank == 1 else "worker", f"cuda:{world.rank}", 7)
    assert found["role"].tolist() == [b"server" if rank == 1 else b"worker" for rank in range(world.size)]
    assert found["device"].tolist() == [f"cuda:{rank}".encode() for rank in range(world.size)]
    assert found["host"].tolist() == [socket.gethostname().encode()] * world.size
    assert set(found["threads"].tolist()) == {7}
    assert found["cores"].tolist() == world.comm.allgather(world.cores)
