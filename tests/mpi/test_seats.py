"""Who does what, by numbers worked by hand."""

import pytest

from asyncfeded.mpi.seats import Part, Seats, deal

HOSTS = ["a", "a", "a", "b", "b", "b"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, Seats((0, 1, 2, 3, 4, 5), ((1,), (2,), (3,), (4,), (5,)))),
        ({"server": 5}, Seats((5, 0, 1, 2, 3, 4), ((1,), (2,), (3,), (4,), (5,)))),
        ({"servers": 2, "server": 5}, Seats((5, 0, 1, 2, 3, 4), ((2,), (3,), (4,), (5,)), 2)),
        ({"evaluator": 3}, Seats((0, 3, 1, 2, 4, 5), ((2,), (3,), (4,), (5,)), 1, 1)),
        ({"servers": 2, "ranks_per_client": 2}, Seats((0, 1, 2, 3, 4, 5), ((2, 3), (4, 5)), 2)),
        ({"ranks_per_client": "node"}, Seats((0, 1, 2, 3, 4, 5), ((1, 2), (3, 4, 5)))),
        ({"ranks_per_client": 5}, Seats((0, 1, 2, 3, 4, 5), ((1, 2, 3, 4, 5),))),
    ],
)
def test_the_seats_are_dealt_in_one_way(asked, expected):
    assert deal(HOSTS, **asked) == expected


def test_a_worker_has_ranks_of_one_host_as_far_as_possible():
    """The launcher has dealt the ranks to the hosts in turn."""
    seats = deal(["a", "b", "a", "b", "a"], ranks_per_client=2)
    assert seats == Seats((0, 2, 4, 1, 3), ((1, 2), (3, 4)))
    assert (seats.leaders, seats.workers, [seats.worker(seat) for seat in range(5)]) == ((1, 3), 2, [-1, 0, 0, 1, 1])
    assert [list(seats.homes(seat, 5)) for seat in (0, 2, 3)] == [[], [0, 2, 4], [1, 3]]
    assert [seats.serves(rank) for rank in range(5)] == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"server": 6}, "server = 6, but the ranks are 0 to 5; set server to one of them"),
        ({"evaluator": 0}, r"evaluator = 0, but the ranks are 0 to 5, and \[0\] are the server; set it to another one"),
        ({"evaluator": 6}, "evaluator = 6, but the ranks are 0 to 5"),
        ({"servers": 6}, "6 ranks do not make 6 of the server and clients of 1 ranks each; start 7, or"),
        ({"ranks_per_client": 3}, "6 ranks do not make 1 of the server and clients of 3 ranks each; start 4, or"),
        ({"ranks_per_client": 6}, "start 7, or"),
    ],
)
def test_ranks_that_do_not_suffice_or_are_left_over_are_refused(asked, words):
    with pytest.raises(ValueError, match=words):
        deal(HOSTS, **asked)


@pytest.mark.parametrize(
    ("samples", "size", "parts"),
    [(10, 1, [range(10)]), (10, 4, [range(3), range(3, 6), range(6, 8), range(8, 10)]), (1, 2, [range(1), range(1, 1)])],
)
def test_a_batch_is_cut_into_parts_of_almost_equal_size(samples, size, parts):
    assert [Part(rank, size).of(samples) for rank in range(size)] == parts
