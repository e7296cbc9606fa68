"""What the ranks of a server say to each other, on real ranks (see ranks.py)."""

import numpy as np
import pytest

from asyncfeded.wire.messages import Lost
from asyncfeded.wire.server_ranks import What
from asyncfeded.wire.transfer import CHUNK
from mpi.ranks import RANKS, nothing_left, server_ranks, together

pytestmark = pytest.mark.skipif(RANKS < 2, reason="needs two ranks of the server")


@together
def test_numbers_of_all_slices_come_together_in_order(world, comm):
    ranks = server_ranks(comm, 3 * CHUNK)
    if ranks:
        numbers = np.arange(2.0 * ranks.mine.chunks).reshape(-1, 2) + 10 * comm.rank
        assert ranks.numbers_of_all(numbers).tolist() == [[0.0, 1.0], [2.0, 3.0], [10.0, 11.0]]
        say_and_hear(comm, ranks)
    assert nothing_left(comm)


def say_and_hear(comm, ranks):
    """The first rank says who is lost; nobody hears what it says after the END."""
    if comm.rank == 0:
        ranks.say_event(Lost("rank 2", (0, 4), "why"), 3.5, -1)
        ranks.say(What.END)
        ranks.say(What.COLLECT)
    else:
        heard = []
        while len(heard) < 2:
            if (word := ranks.hear()) is not None:
                heard.append(word)
        assert [word.what for word in heard] == [What.LOSE, What.END]
        assert heard[0].behind.tolist() == [0.0, 4.0]
        assert heard[0].fields["now"] == 3.5
    ranks.close()
