"""One model on its way between two real ranks. On every rank (see ranks.py)."""

import time

import numpy as np
import pytest

from asyncfeded.mpi.launcher import MPI
from asyncfeded.wire.transfer import CHUNK, UNDER_WAY, WEIGHTS_TAG, Peer, Receiving, Sending
from mpi.ranks import together


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, (UNDER_WAY + 3) * CHUNK + 5])
@together
def test_parts_arrive_in_order_and_few_are_under_way(world, comm, size):
    """The receiver posts nothing for a while: the sender stops at `UNDER_WAY` messages, the header among them."""
    weights = np.arange(size, dtype=np.float32) if world.rank == 1 else np.zeros(size, np.float32)
    if world.rank == 1:
        sending = Sending(Peer(comm, 0, ""), weights, comm.Isend([np.zeros(64, np.uint8), MPI.BYTE], 0, 1))
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
        receiving, parts = Receiving(Peer(comm, 1, ""), weights), []
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
        sending = Sending(Peer(comm, 0, ""), weights, comm.Isend([np.zeros(64, np.uint8), MPI.BYTE], 0, 1))
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
        receiving = Receiving(Peer(comm, 1, ""), weights)
        while receiving.done < CHUNK:
            receiving.poll()
        assert not comm.Iprobe(1, WEIGHTS_TAG)
        comm.Send(np.zeros(1), 1)
        while not receiving.complete:
            receiving.poll()
        assert weights[:CHUNK].max() == 0.0
        assert weights[CHUNK:].min() == 7.0
