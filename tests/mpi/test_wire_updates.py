"""Updates and replies between real ranks: all arrive to the bit, until a stop. On every rank (see ranks.py)."""

import functools
import time

import numpy as np
import pytest
import torch

from asyncfeded.model.flat import Entry, Layout
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.wire.messages import Order
from asyncfeded.wire.staging import Staging
from asyncfeded.wire.transfer import CHUNK
from mpi.ranks import SERVER, answer, bits, client, nothing_left, server, take, together


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
                wire.reply(Order(i, 0, 2**40, i + 1, learning_rate=0.1), buffer, int)
            while min(done) < rounds:
                arrival = take(wire)
                i, n = arrival.client, done[arrival.client]
                numbers = (i, 7 * n, 2**40 + n, i + 1 + n, 2**41 + i, 2**30 + n, n + 0.1, n + 0.2, n + 0.3)
                assert (*arrival[:9], arrival.measured) == (*numbers, n + 0.4)
                assert np.array_equal(arrival.weights.numpy().view(np.uint32), bits(size, seed, turn, i, n, 1))
                wire.release(arrival)
                done[i] += 1
                if done[i] < rounds:
                    buffers[i].numpy().view(np.uint32)[:] = bits(size, seed, turn, i, done[i], 0)
                    again = Order(i, 7 * done[i], 2**40 + done[i], i + 1 + done[i], learning_rate=0.1 + done[i])
                    wire.reply(again, buffers[i], int)
            assert wire.stop() == 0
        else:
            wire, buffer = client(comm, size)
            i, n = world.rank - 1, 0
            while (order := wire.receive()) is not None:
                assert order == Order(i, 7 * n, 2**40 + n, i + 1 + n, learning_rate=0.1 + n)
                assert np.array_equal(buffer.numpy().view(np.uint32), bits(size, seed, turn, i, n, 0))
                buffer.numpy().view(np.uint32)[:] = bits(size, seed, turn, i, n, 1)
                wire.send(order, 2**41 + i, 2**30 + n, n + 0.1, n + 0.2, n + 0.3, measured=n + 0.4)
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
