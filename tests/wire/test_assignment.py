"""Where clients live, and where they go when a worker is lost."""

import pytest

from asyncfeded.wire.assignment import Homes


def test_a_client_lives_on_its_number_modulo_the_workers():
    homes = Homes(3, 7, moving=True)
    assert [homes.of(client) for client in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_clients_of_a_lost_worker_move_to_those_with_the_fewest():
    """Worker 0 had clients 0, 3 and 6; the others have two each, then three and two, then three and three."""
    homes = Homes(3, 7, moving=True)
    homes.lost.add(0)
    assert [homes.of(client) for client in range(7)] == [1, 1, 2, 2, 1, 2, 1]
    assert homes.stranded(0) == ()


def test_a_client_that_has_moved_stays_where_it_is_when_its_worker_comes_back():
    homes = Homes(2, 2, moving=True)
    homes.lost.add(0)
    assert homes.of(0) == 1
    homes.lost.clear()
    assert homes.of(0) == 1


def test_clients_that_may_not_move_are_stranded():
    homes = Homes(2, 5, moving=False)
    homes.lost.add(1)
    assert homes.stranded(1) == (1, 3)
    assert homes.of(1) == 1


@pytest.mark.parametrize("moving", [False, True])
def test_with_the_last_worker_all_that_were_left_are_stranded(moving):
    homes = Homes(2, 4, moving)
    homes.lost.add(0)
    assert homes.stranded(0) == (() if moving else (0, 2))
    homes.lost.add(1)
    assert homes.stranded(1) == ((0, 1, 2, 3) if moving else (1, 3))
