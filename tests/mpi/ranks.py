"""What the tests of messages between real ranks share: all run on every rank of a job (see ../wire/test_server_wire.py).

Who imports this in one process is skipped. A test's body may fail on one rank alone; `together` tells the others, so that
all fail with the same text.
"""

import functools
import time

import numpy as np
import pytest
import torch

from asyncfeded.model.slices import cut
from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.origin import launched_by
from asyncfeded.mpi.waiting import Backoff
from asyncfeded.mpi.world import PROTOCOL
from asyncfeded.wire.client_wire import ClientWire
from asyncfeded.wire.group import make_group
from asyncfeded.wire.messages import HEADER, HEADER_TAG, MAGIC
from asyncfeded.wire.server_ranks import ServerRanks
from asyncfeded.wire.server_wire import ServerWire
from asyncfeded.wire.transfer import WEIGHTS_TAG, peers

RANKS = (launched_by() or ("", 1, 0))[1]
if RANKS < 2:
    pytest.skip("needs ranks: mpiexec -n 4 python -m pytest tests/mpi", allow_module_level=True)
SERVER = 0
SERVERS = 2
"""Where the server has several ranks."""


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


def alone(comm):
    """All ranks but the server's, each a worker."""
    return peers(comm, [(rank,) for rank in range(1, comm.size)])


def server(comm, size, pool=2, measure=None):
    return ServerWire(comm, alone(comm), size, Backoff(), pool, measure)


def client(comm, size):
    """A client's wire and its buffer."""
    buffer = torch.zeros(size)
    return ClientWire(comm, buffer, Backoff()), buffer


def bits(size, *key):
    """Weights of any bit pattern, NaNs among them, that follow from the key."""
    return np.random.default_rng(key).integers(0, 2**32, size, np.uint32)


def server_ranks(comm, size):
    """The ranks of a server of several, of a message of this size; None on a client."""
    of_server = comm.Split(0 if comm.rank < SERVERS else MPI.UNDEFINED, comm.rank)
    if comm.rank >= SERVERS:
        return None
    ranks = ServerRanks(make_group(of_server, Backoff(), "the server"), cut(size, SERVERS))
    ranks.connect(10.0)
    return ranks


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
