"""Updates that are not as they should be, from real ranks, are refused and none is merged. On every rank (see ranks.py)."""

import numpy as np
import pytest
import torch

from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.world import PROTOCOL
from asyncfeded.wire.messages import HEADER, HEADER_TAG, LAST, MAGIC, Arrival, Order, Refused
from asyncfeded.wire.transfer import WEIGHTS_TAG
from mpi.ranks import RANKS, SERVER, answer, client, header, nothing_left, send, server, take, together


def takes_the_next(wire, buffer):
    """The server goes on: client 0 answers its next order, and is stopped."""
    wire.reply(Order(0, 1, 0, 1), buffer, int)
    arrival = take(wire)
    assert arrival.weights.tolist() == [2.0] * 5
    wire.release(arrival)
    wire.stop()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"client": 1}, "sent an update: it is from client 1, who was not asked"),
        ({"client": -7}, "sent an update: it is from client -7, who was not asked"),
        ({"round": 1}, "sent an update: it answers round 1, expected 0"),
        ({"version": 1}, "sent an update: it started from version 1, which the client does not hold: it was sent 0"),
        ({"epochs": 2}, "sent an update: it has done K = 2, expected 1"),
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
        takes_the_next(wire, buffer)
    else:
        wire, buffer = client(comm, 5)
        if wire.receive() is not None:
            send(comm, header(**fields), np.ones(5, np.float32))
            wire._num_sent += 1
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
        ({"protocol": 99}, f"protocol 99, expected {PROTOCOL}"),
        ({"flags": 8}, "flags 0x8, expected 0x2, 0x40, or of 0x30"),
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
            wire._num_sent += 1
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
        takes_the_next(wire, buffer)
    else:
        wire, buffer = client(comm, 5)
        if wire.receive() is not None:
            made = np.zeros(length, np.uint8)
            made[: HEADER.itemsize] = header(round=7).view(np.uint8)[:length]
            comm.Send([made, MPI.BYTE], SERVER, HEADER_TAG)
            comm.Send([np.ones(5, np.float32), MPI.FLOAT], SERVER, WEIGHTS_TAG + 1)
            wire._num_sent += 1
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
        takes_the_next(wire, buffer)
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
                wire._num_sent += 1
                send(comm, made, np.ones(count, np.float32), number=wire._num_sent)
                while made["magic"] != MAGIC or made["protocol"] != PROTOCOL or made["flags"]:  # not answered
                    made, count = mutated(rng, order, size)
                    wire._num_sent += 1
                    send(comm, made, np.ones(count, np.float32), number=wire._num_sent)
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
