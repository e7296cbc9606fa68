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

from asyncfeded import launcher, world
from asyncfeded.launcher import MPI
from asyncfeded.transfer import CHUNK, UNDER_WAY, WEIGHTS_TAG, Receiving, Sending
from asyncfeded.wire import HEADER, HEADER_TAG, MAGIC, ClientWire, Order, ServerWire
from asyncfeded.world import PROTOCOL, Backoff, RefusedError

RANKS = (launcher.launched_by() or ("", 1, 0))[1]
if RANKS < 2:
    pytest.skip("needs ranks: mpiexec -n 4 python -m pytest tests/mpi", allow_module_level=True)
BACKOFF = {"spin": False}
SERVER = 0


@pytest.fixture(scope="session")
def here():
    """This rank in its job."""
    yield world.join()
    world.leave()


@pytest.fixture
def comm(here):
    """A communicator of the test's own, on which nothing may be left when it has ended."""
    comm = here.comm.Dup()
    yield comm
    comm.Free()


def together(body):
    """A test that fails on all ranks, if it fails on one, with the text of every failure."""

    @functools.wraps(body)
    def test(here, *args, **kwargs):
        failure = None
        try:
            body(here, *args, **kwargs)
        except BaseException as error:
            failure = f"rank {here.rank}: {type(error).__name__}: {error}"
        failures = [f for f in here.comm.allgather(failure) if f]
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
        wire.send(order, 0, 0, 0.0, 0.0, 0.0)
        sent += 1
    wire.finish()
    return sent


def nothing_left(comm):
    """Whether no message waits on any rank, asked when all ranks have done their part."""
    comm.Barrier()
    time.sleep(0.01)
    return not comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG)


@pytest.mark.parametrize("seed", range(3))
@together
def test_weights_and_numbers_arrive_bit_for_bit(here, comm, seed):
    """Models of few elements, of about a chunk and of 6 chunks in random order on one communicator, some rounds each."""
    for turn, size in enumerate(
        np.random.default_rng(seed).choice([1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 1_500_000], 8).tolist()
    ):
        rounds = 3
        if here.rank == SERVER:
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
            i, n = here.rank - 1, 0
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
def test_an_update_is_measured_part_by_part_and_a_reply_made_so(here, comm, size):
    """Parts come in order, each when it is there: what `measure` sees of w is what was sent."""
    ends = [*range(CHUNK, size, CHUNK), size]
    if here.rank == SERVER:
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
        wire.send(order, 0, 0, 0.0, 0.0, 0.0)
        assert wire.receive() is None
        wire.finish()
        assert torch.equal(received, torch.ones(size))


@pytest.mark.skipif(RANKS < 3, reason="needs two clients: 3 ranks")
@together
def test_a_client_that_stalls_in_the_middle_of_an_update_holds_nobody_up(here, comm):
    """Client 0 sends a header and one chunk of three, and the rest when all others have had five turns."""
    size = 3 * CHUNK
    everyone = comm.Dup()
    if here.rank == SERVER:
        wire, buffers = server(comm, size, pool=comm.size - 1), [torch.zeros(size) for _ in range(comm.size - 1)]
        everyone.Barrier()
        turns = np.zeros(comm.size - 1, int)
        for i in range(1, comm.size - 1):
            wire.reply(Order(i, 0, 0, 1), buffers[i], int)
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
        if here.rank == 1:
            buffer.copy_(torch.arange(3.0).repeat_interleave(CHUNK))
            header = np.zeros(1, HEADER)
            header[0] = (MAGIC, PROTOCOL, 0, *[0] * 9)
            comm.Send([header.view(np.uint8), MPI.BYTE], SERVER, HEADER_TAG)
            first = comm.Isend([buffer.numpy()[:CHUNK], MPI.FLOAT], SERVER, WEIGHTS_TAG)
            everyone.Barrier()
            everyone.Recv(np.zeros(1), SERVER)
            first.Wait()
            for i in (1, 2):
                comm.Send([buffer.numpy()[i * CHUNK : (i + 1) * CHUNK], MPI.FLOAT], SERVER, WEIGHTS_TAG)
            assert wire.receive() is None
            wire.finish()
        else:
            everyone.Barrier()
            answer(wire, buffer)
    everyone.Free()


@pytest.mark.parametrize("size", [1, 100_000])
@together
def test_no_client_is_starved_when_all_flood_the_server(here, comm, size):
    """The server is the slowest, so that every client waits in every turn: one that served low ranks first would serve
    only these."""
    total = 60 * (comm.size - 1)
    if here.rank == SERVER:
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
def test_who_came_first_is_served_first(here, comm):
    """Client 0 holds the only buffer. The others send one after the other, the highest rank first; each is there when
    its weights can be probed."""
    others = list(range(comm.size - 1, 1, -1))
    if here.rank == SERVER:
        wire, buffers = server(comm, 5, pool=1), [torch.zeros(5) for _ in range(comm.size - 1)]
        wire.reply(Order(0, 0, 0, 1), buffers[0], int)
        held = take(wire)
        for rank in others:
            wire.reply(Order(rank - 1, 0, 0, 1), buffers[rank - 1], int)
            while not comm.Iprobe(rank, WEIGHTS_TAG):
                wire.pause()
            assert wire.next() is None  # sees the header, has no buffer
        wire.release(held)
        order = []
        for _ in others:
            arrival = take(wire)
            order.append(arrival.client + 1)
            wire.release(arrival)
        wire.stop()
        assert order == others
    else:
        answer(*client(comm, 5))


@pytest.mark.skipif(RANKS < 3, reason="needs two clients: 3 ranks")
@together
def test_who_was_announced_first_is_served_first(here, comm):
    """The header of client 0 comes first, the weights of clients 0 and 1 later and so that one poll finds both."""
    everyone = comm.Dup()
    if here.rank == SERVER:
        wire, buffers = server(comm, 5), [torch.zeros(5) for _ in range(comm.size - 1)]
        wire.reply(Order(0, 0, 0, 1), buffers[0], int)
        wire.release(take(wire))  # now the other one of the two buffers is next
        everyone.Barrier()  # the header of client 0 is sent
        assert wire.next() is None
        everyone.Barrier()  # client 0 may send its weights
        everyone.Recv(np.zeros(1), 1)  # and has: they came before this
        wire.reply(Order(1, 0, 0, 1), buffers[1], int)
        while not comm.Iprobe(2, WEIGHTS_TAG):
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
        if here.rank == 1:
            wire.receive()
            wire.send(Order(0, 0, 0, 1), 0, 0, 0.0, 0.0, 0.0)
            header = np.zeros(1, HEADER)
            header[0] = (MAGIC, PROTOCOL, 0, *[0] * 9)
            comm.Send([header.view(np.uint8), MPI.BYTE], SERVER, HEADER_TAG)
        everyone.Barrier()
        everyone.Barrier()
        if here.rank == 1:
            comm.Send([buffer.numpy(), MPI.FLOAT], SERVER, WEIGHTS_TAG)
            everyone.Send(np.zeros(1), SERVER)
        answer(wire, buffer)
        everyone.Free()


@pytest.mark.parametrize("size", [1, 1_000_000])
@together
def test_a_stop_while_updates_are_under_way_leaves_nothing_unreceived(here, comm, size):
    """Ten times, after another number of updates each; clients send as fast as they can."""
    for updates in range(10):
        taken, sent, discarded = updates, 0, 0
        if here.rank == SERVER:
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
def test_a_client_that_trains_sees_the_stop(here, comm):
    everyone = comm.Dup()
    if here.rank == SERVER:
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
def test_a_client_that_was_never_answered_is_stopped(here, comm):
    if here.rank == SERVER:
        assert server(comm, 5).stop() == 0
    else:
        wire, _ = client(comm, 5)
        assert wire.receive() is None
        wire.finish()
    assert nothing_left(comm)


@together
def test_one_receive_buffer_serves_all_clients_whose_updates_do_not_stall(here, comm, monkeypatch):
    monkeypatch.setattr("asyncfeded.wire.STALLED_S", 60.0)
    if here.rank == SERVER:
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


@pytest.mark.parametrize(("field", "value"), [("magic", 1), ("protocol", 99), ("client", 1)])
@together
def test_a_header_that_is_not_of_this_program_ends_the_run(here, comm, field, value):
    if here.rank == SERVER:
        wire = server(comm, 5)
        while not comm.Iprobe(1, WEIGHTS_TAG):  # sent after the header
            time.sleep(0.001)
        comm.Recv(np.zeros(1), 1, WEIGHTS_TAG)
        if field != "client" or comm.size > 2:  # all clients are of the one worker
            with pytest.raises(RuntimeError, match="worker 0 sent a header that is not of this protocol"):
                wire.next()
    elif here.rank == 1:
        header = np.zeros(1, HEADER)
        header[0] = (MAGIC, PROTOCOL, 0, *[0] * 9)
        header[field] = value
        comm.Send([header.view(np.uint8), MPI.BYTE], SERVER, HEADER_TAG)
        comm.Send(np.zeros(1), SERVER, WEIGHTS_TAG)


@together
def test_an_update_of_another_length_ends_the_run(here, comm):
    if here.rank == SERVER:
        wire = server(comm, 5)
        with pytest.raises(RuntimeError, match="rank 1 sent 3 numbers, expected 5 of a model of 5"):
            take(wire)
    elif here.rank == 1:
        header = np.zeros(1, HEADER)
        header[0] = (MAGIC, PROTOCOL, 0, *[0] * 9)
        comm.Send([header.view(np.uint8), MPI.BYTE], SERVER, HEADER_TAG)
        comm.Send([np.zeros(3, np.float32), MPI.FLOAT], SERVER, WEIGHTS_TAG)


# One model on its way


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, (UNDER_WAY + 3) * CHUNK + 5])
@together
def test_parts_arrive_in_order_and_few_are_under_way(here, comm, size):
    """The receiver posts nothing for a while: the sender stops at `UNDER_WAY` messages, the header among them."""
    weights = np.arange(size, dtype=np.float32) if here.rank == 1 else np.zeros(size, np.float32)
    if here.rank == 1:
        sending = Sending(comm, weights, 0, comm.Isend([np.zeros(64, np.uint8), MPI.BYTE], 0, 1))
        for ready in (*range(CHUNK, size, CHUNK), size):
            sending.push(ready)
            assert len(sending._requests) <= UNDER_WAY
        comm.Barrier()
        while not (sending.push(size) and sending.sent()):
            time.sleep(1e-4)
    else:
        comm.Barrier()
    if here.rank == 0:
        comm.Recv([np.zeros(64, np.uint8), MPI.BYTE], 1, 1)
        receiving, parts = Receiving(comm, weights, 1), []
        while not receiving.complete:
            if (part := receiving.poll()) is not None:
                assert np.array_equal(weights[slice(*part)], np.arange(*part, dtype=np.float32))
                parts.append(part)
        assert parts == [(start, min(start + CHUNK, size)) for start in range(0, size, CHUNK)]
        assert receiving.poll() is None


@together
def test_what_is_not_ready_is_not_sent(here, comm):
    if here.rank == 1:
        weights = np.zeros(2 * CHUNK, np.float32)
        sending = Sending(comm, weights, 0, comm.Isend([np.zeros(64, np.uint8), MPI.BYTE], 0, 1))
        assert sending.push(CHUNK)
        assert not sending.sent()
        comm.Recv(np.zeros(1), 0)  # the first chunk is there
        weights[CHUNK:] = 7.0
        assert sending.push(2 * CHUNK)
        while not sending.sent():
            time.sleep(1e-4)
    if here.rank == 0:
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


def refusal(here, said):
    """The text with which `agree` refuses, after a look whether all ranks were told the same."""
    with pytest.raises(RefusedError) as refused:
        world.agree(here, said)
    texts = here.comm.allgather(str(refused.value))
    assert set(texts) == {texts[0]}
    return texts[0]


@together
def test_equal_statements_agree(here):
    world.agree(here, world.statement(config=b"c" * 32, layout=b"l" * 32, num_params=10, size=12))


@together
def test_every_rank_knows_the_hosts_of_all(here):
    assert here.hosts == [socket.gethostname()] * here.size


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
def test_a_rank_that_differs_is_named_to_all_with_both_values(here, field, value, shown, what):
    said = world.statement(num_params=10, size=12)
    odd = here.size - 1
    if here.rank == odd:
        said[field] = value
    text = refusal(here, said)
    assert text.startswith(f"rank 0 on {here.hosts[0]} and rank {odd} on {here.hosts[0]} {what} ({field}: ")
    assert f" and {shown}); " in text


@together
def test_a_problem_of_one_rank_is_told_to_all_with_its_rank_and_host(here):
    odd = here.size - 1
    text = refusal(here, world.statement(problem="no Käse" if here.rank == odd else ""))
    assert text == f"rank {odd} on {here.hosts[0]}: no Käse"


@together
def test_a_problem_that_all_ranks_have_is_told_once(here):
    assert refusal(here, world.statement(problem="no file")) == "no file"


@together
def test_different_problems_are_all_told(here):
    text = refusal(here, world.statement(problem=f"problem {here.rank}"))
    assert text.splitlines() == ["problem 0"] + [f"rank {r} on {here.hosts[0]}: problem {r}" for r in range(1, here.size)]


@together
def test_a_long_problem_is_cut_and_still_told(here):
    text = refusal(here, world.statement(problem="ü" * 5000))
    assert text.startswith("ü" * 1023)
    assert len(text) <= 1025


@together
def test_the_ranks_of_a_host_share_its_cores(here):
    """All ranks run on this host."""
    cores = here.comm.allgather(here.cores)
    assert min(cores) > 0
    assert sum(cores) <= len(os.sched_getaffinity(0)) + 1e-9
    assert here.threads == max(1, int(here.cores))
    assert here.crowded == (min(cores) < 1 - 1e-9)
    assert here.neighbours == list(range(here.size))


@together
def test_cores_are_shared_anew_when_ranks_have_bound_themselves(here):
    """All but rank 0 leave the first core."""
    may = sorted(os.sched_getaffinity(0))
    if len(may) < 2:
        return
    try:
        if here.rank:
            os.sched_setaffinity(0, may[1:])
        cores = here.comm.allgather(world.share_cores(here).cores)
    finally:
        os.sched_setaffinity(0, may)
    others = (len(may) - 1) / here.size
    assert cores == pytest.approx([1 + others] + [others] * (here.size - 1))


@together
def test_any_rank_may_sit_first(here):
    server = here.size - 1
    seated = world.seat(here, server)
    assert seated.comm.allgather(here.rank) == [server, *range(server)]
    assert seated.rank == (here.rank + 1) % here.size
    assert seated.neighbours == list(range(here.size))
    seated.comm.Free()
    assert world.seat(here, 0) is here


@together
def test_every_rank_has_the_map_of_all(here):
    found = world.places(here, "server" if here.rank == 1 else "worker", f"cuda:{here.rank}", 7)
    assert found["role"].tolist() == [b"server" if rank == 1 else b"worker" for rank in range(here.size)]
    assert found["device"].tolist() == [f"cuda:{rank}".encode() for rank in range(here.size)]
    assert found["host"].tolist() == [socket.gethostname().encode()] * here.size
    assert set(found["threads"].tolist()) == {7}
    assert found["cores"].tolist() == here.comm.allgather(here.cores)
