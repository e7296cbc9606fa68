"""Where clients live, and where they go when a worker is lost."""

import pytest

from asyncfeded.wire.assignment import Assignment
from conftest import num_calls


def test_a_client_lives_on_its_number_modulo_the_workers():
    assignment = Assignment(3, 7, moving=True)
    assert [assignment.of(client) for client in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_clients_of_a_lost_worker_move_to_those_with_the_fewest():
    """Worker 0 had clients 0, 3 and 6; the others have two each, then three and two, then three and three."""
    assignment = Assignment(3, 7, moving=True)
    assignment.lost.add(0)
    assert [assignment.of(client) for client in range(7)] == [1, 1, 2, 2, 1, 2, 1]
    assert assignment.stranded(0) == ()


def test_a_client_that_has_moved_stays_where_it_is_when_its_worker_comes_back():
    assignment = Assignment(2, 2, moving=True)
    assignment.lost.add(0)
    assert assignment.of(0) == 1
    assignment.lost.clear()
    assert assignment.of(0) == 1


def test_clients_that_may_not_move_are_stranded():
    assignment = Assignment(2, 5, moving=False)
    assignment.lost.add(1)
    assert assignment.stranded(1) == (1, 3)
    assert assignment.of(1) == 1


@pytest.mark.parametrize("moving", [False, True])
def test_with_the_last_worker_all_that_were_left_are_stranded(moving):
    assignment = Assignment(2, 4, moving)
    assignment.lost.add(0)
    assert assignment.stranded(0) == (() if moving else (0, 2))
    assignment.lost.add(1)
    assert assignment.stranded(1) == ((0, 1, 2, 3) if moving else (1, 3))


def test_the_clients_of_a_lost_worker_move_in_a_time_that_is_linear_in_them():
    """Four times the clients: four times the calls, where it was sixteen times."""

    def move(clients):
        assignment = Assignment(4, clients, moving=True)
        assignment.lost.add(0)
        return num_calls(lambda: [assignment.of(client) for client in range(clients)])

    assert move(400) < 6 * move(100)
