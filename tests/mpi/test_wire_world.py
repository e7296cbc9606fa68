"""What real ranks tell each other before training. On every rank (see ranks.py)."""

import os
import socket

import pytest

from asyncfeded.mpi.seats import deal
from asyncfeded.mpi.world import (
    RefusedError,
    compare_statements,
    gather_places,
    make_statement,
    share_cores,
    take_seats,
)
from mpi.ranks import together


def refusal(world, said):
    """The text with which `agree` refuses, after a look whether all ranks were told the same."""
    with pytest.raises(RefusedError) as refused:
        compare_statements(world, said)
    texts = world.comm.allgather(str(refused.value))
    assert set(texts) == {texts[0]}
    return texts[0]


@together
def test_equal_statements_agree(world):
    compare_statements(world, make_statement(config=b"c" * 32, layout=b"l" * 32, num_params=10, size=12))


@together
def test_every_rank_knows_the_hosts_of_all(world):
    assert world.hosts == [socket.gethostname()] * world.size


@pytest.mark.parametrize(
    ("field", "value", "shown", "what"),
    [
        ("protocol", 7, "7", "speak different protocols"),
        ("config", 255, "ff" * 6, "have different configs"),
        ("dtype", b"float16", "float16", "hold the model in different types"),
        ("num_params", 11, "11", "have models of different size"),
        ("size", 13, "13", "have models of different size"),
        ("layout", 255, "ff" * 6, "have models with different parameters"),
    ],
)
@together
def test_a_rank_that_differs_is_named_to_all_with_both_values(world, field, value, shown, what):
    said = make_statement(num_params=10, size=12)
    odd = world.size - 1
    if world.rank == odd:
        said[field] = value
    text = refusal(world, said)
    assert text.startswith(f"rank 0 on {world.hosts[0]} and rank {odd} on {world.hosts[0]} {what} ({field}: ")
    assert f" and {shown}); " in text


@together
def test_a_problem_of_one_rank_is_told_to_all_with_its_rank_and_host(world):
    odd = world.size - 1
    text = refusal(world, make_statement(problem="no Käse" if world.rank == odd else ""))
    assert text == f"rank {odd} on {world.hosts[0]}: no Käse"


@together
def test_a_problem_that_all_ranks_have_is_told_once(world):
    assert refusal(world, make_statement(problem="no file")) == "no file"


@together
def test_different_problems_are_told_up_to_three(world):
    text = refusal(world, make_statement(problem=f"problem {'abcdefgh'[world.rank]}"))
    told = ["problem a", *(f"rank {r} on {world.hosts[0]}: problem {'abcdefgh'[r]}" for r in range(1, min(world.size, 3)))]
    more = [f"({world.size - 3} more of {world.size} ranks have such a problem)"] if world.size > 3 else []
    assert text.splitlines() == told + more


@together
def test_problems_that_differ_in_numbers_only_are_told_once(world):
    text = refusal(world, make_statement(problem=f"client {world.rank} has no samples"))
    more = f"({world.size - 1} more of {world.size} ranks have such a problem)"
    assert text.splitlines() == ["client 0 has no samples", more]


@together
def test_a_long_problem_is_cut_and_still_told(world):
    text = refusal(world, make_statement(problem="ü" * 5000))
    assert text.startswith("ü" * 2047)
    assert len(text) <= 2049


@together
def test_the_ranks_of_a_host_share_its_cores(world):
    """All ranks run on this host."""
    cores = world.comm.allgather(world.cores)
    assert min(cores) > 0
    assert sum(cores) <= len(os.sched_getaffinity(0)) + 1e-9
    assert world.threads == max(1, int(world.cores))
    assert world.crowded == (min(cores) < 1 - 1e-9)
    assert world.neighbours == list(range(world.size))


@together
def test_cores_are_shared_anew_when_ranks_have_bound_themselves(world):
    """All but rank 0 leave the first core."""
    may = sorted(os.sched_getaffinity(0))
    if len(may) < 2:
        return
    try:
        if world.rank:
            os.sched_setaffinity(0, may[1:])
        cores = world.comm.allgather(share_cores(world).cores)
    finally:
        os.sched_setaffinity(0, may)
    others = (len(may) - 1) / world.size
    assert cores == pytest.approx([1 + others] + [others] * (world.size - 1))


@together
def test_any_rank_may_sit_first(world):
    server = world.size - 1
    seated = take_seats(world, deal(world.hosts, server))
    assert seated.comm.allgather(world.rank) == [server, *range(server)]
    assert seated.rank == (world.rank + 1) % world.size
    assert seated.neighbours == list(range(world.size))
    seated.comm.Free()
    assert take_seats(world, deal(world.hosts)).comm is world.comm


@together
def test_every_rank_has_the_map_of_all(world):
    found = gather_places(world, "server" if world.rank == 1 else "worker", f"cuda:{world.rank}", 7)
    assert found["role"].tolist() == [b"server" if rank == 1 else b"worker" for rank in range(world.size)]
    assert found["device"].tolist() == [f"cuda:{rank}".encode() for rank in range(world.size)]
    assert found["host"].tolist() == [socket.gethostname().encode()] * world.size
    assert set(found["threads"].tolist()) == {7}
    assert found["cores"].tolist() == world.comm.allgather(world.cores)
