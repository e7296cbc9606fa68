"""Which tests of this folder run where: those of the part `mpi` in one process, those of messages on every rank of a job."""

from pathlib import Path

import pytest

from asyncfeded.mpi.lifeline import Lifeline
from asyncfeded.mpi.origin import launched_by
from asyncfeded.mpi.seats import Part
from asyncfeded.mpi.waiting import Backoff
from asyncfeded.mpi.world import join_job, leave_job
from asyncfeded.wire.group import Group

if launched_by():
    collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*.py") if "_wire_" not in path.name]


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


@pytest.fixture
def group(comm):
    """All ranks as those of one client."""
    made = Group(comm, Part(comm.rank, comm.size), Backoff(), Lifeline(comm), "group 0")
    made.connect(10.0)
    yield made
    comm.Barrier()
    made.lifeline.close()
    made.undo.close()
