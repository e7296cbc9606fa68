"""A group whose ranks wait for each other. On every rank (see ranks.py)."""

import time

import pytest

from asyncfeded.wire.group import GroupLostError
from mpi.ranks import together


@together
def test_numbers_of_all_ranks_are_added_up_once_they_have_begun(world, comm, group):
    assert group.total(2.0) == 2.0
    group.begun = True
    assert group.total(0.1) == pytest.approx(0.1 * comm.size)


@together
def test_all_leave_when_one_of_the_group_has_gone(world, comm, group):
    """The last rank ends its connection, as its death would. The leader notices, and the others when it has left."""
    if group.rank == group.size - 1:
        group.lifeline.close()
    else:
        began = time.monotonic()
        with pytest.raises(GroupLostError, match=r"group 0: its rank \d has died or cannot be reached"):
            group.wait(lambda: False)
        assert time.monotonic() - began < 30
        group.lifeline.close()
