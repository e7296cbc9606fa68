"""What ranks say before training and how it is compared. Joining itself is tested under mpiexec."""

import numpy as np
import pytest

from asyncfeded.mpi import world
from asyncfeded.mpi.seats import deal
from asyncfeded.mpi.world import World, compare, make_statement


def said(*statements):
    """What rank 0, 1, ... on the hosts h0, h1, ... say."""
    heard = np.concatenate(statements)
    for rank in range(len(heard)):
        heard["host"][rank] = f"h{rank}".encode()
    return heard


def fine(**changes):
    return make_statement(**({"config": b"c" * 32, "layout": b"l" * 32, "num_params": 10, "size": 12} | changes))


# --- compare


def test_equal_statements_agree():
    assert compare(said(fine(), fine(), fine())) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": b"x" * 32}, "have different configs (config: 636363636363 and 787878787878); start every rank with the"),
        ({"num_params": 11}, "have models of different size (num_params: 10 and 11); use the same model and data"),
        ({"size": 13}, "have models of different size (size: 12 and 13); use the same model and data"),
        ({"layout": b"x" * 32}, "have models with different parameters (layout: 6c6c6c6c6c6c and 787878787878); use"),
    ],
)
def test_a_difference_names_both_sides_and_what_to_do(changes, words):
    """Rank 2 differs."""
    assert compare(said(fine(), fine(), fine(**changes))).startswith(f"rank 0 on h0 and rank 2 on h2 {words}")


@pytest.mark.parametrize("field", ["protocol", "dtype"])
def test_another_version_of_the_program_names_both_sides_and_what_to_do(field):
    heard = said(fine(), fine())
    heard[field][1] = {"protocol": 99, "dtype": b"float64"}[field]
    told = compare(heard)
    assert told.startswith("rank 0 on h0 and rank 1 on h1 ")
    assert told.endswith("install the same asyncfeded on every host")
    assert {"protocol": f"(protocol: {world.PROTOCOL} and 99)", "dtype": "float32"}[field] in told


def test_of_several_differences_the_first_cause_is_told():
    """Another config makes another model: the config is what to mend."""
    assert "different configs" in compare(said(fine(), fine(config=b"x" * 32, num_params=11, layout=b"x" * 32)))


def test_a_digest_that_differs_in_its_last_byte_differs():
    assert "different configs" in compare(said(fine(), fine(config=b"c" * 31 + b"x")))


def test_a_problem_of_a_client_rank_is_told_with_its_place():
    assert compare(said(fine(), fine(), fine(problem="no such file"))) == "rank 2 on h2: no such file"


def test_a_problem_of_rank_0_is_told_as_it_is():
    assert compare(said(fine(problem="no such file"), fine())) == "no such file"


def test_a_problem_that_all_ranks_have_is_told_once():
    assert compare(said(*[fine(problem="no such file") for _ in range(3)])) == "no such file"


def test_a_problem_that_some_clients_have_is_told_once_with_the_first_place():
    assert compare(said(fine(), fine(problem="no data"), fine(problem="no data"))) == "rank 1 on h1: no data"


def test_different_problems_are_all_told():
    told = compare(said(fine(problem="no folder"), fine(problem="no data"), fine()))
    assert told == "no folder\nrank 1 on h1: no data"


def test_a_problem_is_told_before_any_difference():
    """A rank that has a problem has no config to compare."""
    assert compare(said(fine(), make_statement(problem="no data"))) == "rank 1 on h1: no data"


def test_a_problem_longer_than_its_place_is_cut_between_letters_or_marked():
    """4,096 bytes: an odd one before letters of two."""
    told = compare(said(make_statement(problem="x" + "ä" * 3000)))
    assert told.startswith("xää")
    assert len(told) == 1 + 2047 + 1


# --- make_statement


def test_a_statement_has_a_fixed_size():
    assert make_statement().nbytes == make_statement(problem="x" * 9999).nbytes == world.STATEMENT.itemsize


def test_a_statement_says_the_host_the_protocol_and_the_type():
    import socket

    one = make_statement()[0]
    assert one["host"].decode() == socket.gethostname()[:64]
    assert (one["protocol"], one["dtype"]) == (world.PROTOCOL, b"float32")


def test_a_long_host_name_is_cut(monkeypatch):
    monkeypatch.setattr(world.socket, "gethostname", lambda: "h" * 100)
    assert make_statement()["host"][0] == b"h" * 64


@pytest.mark.parametrize(
    ("neighbours", "server", "turns"),
    [
        ([0, 1, 2, 3], 0, {1: 0, 2: 1, 3: 2, 0: 3}),
        ([2, 3, 5], 3, {2: 0, 5: 1, 3: 2}),
        ([4, 6], 0, {4: 0, 6: 1}),
    ],
)
def test_gpus_are_dealt_to_the_clients_of_a_host_and_then_to_the_server(neighbours, server, turns):
    seats = deal(["h0"] * 8, server)
    assert {rank: World(None, rank, 8, [], None, neighbours, 1.0, False, seats).turn(seats) for rank in neighbours} == turns


def test_gpus_are_dealt_to_whole_groups():
    """Two hosts of 4 ranks, which the launcher has dealt in turn: ranks 1, 3, 5, 7 are of the second."""
    seats = deal(["a", "b"] * 4, ranks_per_client=2, server=1, servers=2)
    assert seats.groups == ((2, 3), (4, 5), (6, 7))
    assert seats.order == (1, 2, 0, 4, 6, 3, 5, 7)
    turns = {rank: World(None, rank, 8, [], None, [0, 2, 4, 6], 1.0, False, seats).turn(seats) for rank in (0, 2, 4, 6)}
    assert turns == {0: 0, 4: 1, 6: 2, 2: 3}


def place(cores, crowded):
    return World(None, 0, 4, ["h0"] * 4, None, [0, 1, 2, 3], cores, crowded, deal(["h0"] * 4))


@pytest.mark.parametrize(("cores", "threads"), [(0.25, 1), (1.0, 1), (2.5, 2), (16.0, 16)])
def test_a_rank_runs_as_many_threads_as_it_has_whole_cores_and_one_at_least(cores, threads):
    assert place(cores, False).threads == threads
