"""Which update a server of several ranks receives next; tests/mpi/test_slice_wire_updates.py has the messages."""

import pytest

from asyncfeded.wire.slice_wire import of_another_host

HOSTS = ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("waiting", "arriving", "chosen"),
    [
        ([1, 2], [], 0),
        ([1, 2], [0], 1),  # worker 1 would share the link of worker 0
        ([1, 2, 3], [0], 1),
        ([3, 1], [0, 2], -1),  # all hosts send
        ([], [], -1),
        ([1, 3], [2], 0),
    ],
)
def test_the_next_update_comes_from_a_host_that_sends_none(waiting, arriving, chosen):
    assert of_another_host(waiting, arriving, HOSTS) == chosen
