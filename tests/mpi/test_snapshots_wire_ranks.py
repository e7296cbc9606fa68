"""Snapshots on their way to a rank that tests them, and back: on ranks 0 and 1 of a job."""

import numpy as np
import pytest
import torch

from asyncfeded.mpi.waiting import Backoff
from asyncfeded.wire.deadlines import Deadlines
from asyncfeded.wire.snapshots import EvaluatorLostError, FromServer, ToTester
from asyncfeded.wire.transfer import CHUNK, Peer
from mpi.ranks import together

SIZE = 2 * CHUNK + 3


def to_tester(comm, deadlines=None):
    return ToTester(Peer(comm, 1, "rank 1"), SIZE, 2, Backoff(), deadlines or Deadlines(0, 0))


@together
def test_each_snapshot_gets_its_values_and_the_model_may_move_meanwhile(world, comm):
    """The values are the version, and the sum of the snapshot; there are two signs of life before them."""
    if world.rank == 0:
        wire = to_tester(comm)
        for version in (3, 4):
            x = torch.full((SIZE,), float(version))
            wire.send(x, version)
            x.zero_()
            assert wire.testing
            assert wire.wait() == [float(version), float(version * SIZE)]
            assert not wire.testing
        wire.send(x, 5)
        wire.stop(ranks_lost=True)  # the tester ends its test
    elif world.rank == 1:
        wire, seen = FromServer(Peer(comm, 0, "the server"), SIZE, 2, Backoff()), []
        while (version := wire.receive()) is not None:
            seen.append(version)
            wire.tell()
            wire.tell()
            wire.tell([float(version), float(np.sum(wire.snapshot.numpy(), dtype=np.float64))])
        assert (seen, wire.ranks_lost) == ([3, 4, 5], True)


@together
def test_a_tester_that_falls_silent_is_noticed(world, comm):
    if world.rank == 0:
        wire = to_tester(comm, Deadlines(1.0, 0.05))
        wire.send(torch.zeros(SIZE), 0)
        said = r"rank 1, which tests the model \(evaluator\), was silent for .* s are allowed \(faults.patience\)"
        with pytest.raises(EvaluatorLostError, match=said):
            wire.wait()
    elif world.rank == 1:
        wire = FromServer(Peer(comm, 0, "the server"), SIZE, 2, Backoff())
        assert wire.receive() == 0
        wire.tell()
    comm.Barrier()
