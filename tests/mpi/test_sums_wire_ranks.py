"""Sums over the ranks of a group. On every rank (see ranks.py)."""

import numpy as np
import pytest
import torch

from asyncfeded.wire.sums import SHORT, DeviceSum, ShortSum, Sum, make_sum
from asyncfeded.wire.transfer import CHUNK, UNDER_WAY
from mpi.ranks import nothing_left, together

LONG = 4 * (UNDER_WAY + 2) * CHUNK + 7


@pytest.mark.parametrize(("kind", "size"), [(ShortSum, 1), (ShortSum, 1001), (Sum, 3), (Sum, 1001), (Sum, LONG)])
@together
def test_a_sum_is_in_the_order_of_ranks_to_the_bit_however_it_is_made(world, comm, group, kind, size):
    group.begun = True
    made = kind(group, size)
    vectors = [np.random.default_rng(rank).standard_normal(size, np.float32) for rank in range(comm.size)]
    expected = vectors[0].copy()
    for vector in vectors[1:]:
        expected += vector
    for _ in range(2):
        made.vector.copy_(torch.from_numpy(vectors[comm.rank]))
        made.add()
        assert made.vector.numpy().tobytes() == expected.tobytes()
    assert nothing_left(comm)


@together
def test_until_the_group_has_begun_each_rank_is_alone(world, comm, group):
    for size in (SHORT, SHORT + 1):
        made = make_sum(group, size, torch.device("cpu"))
        made.vector.fill_(world.rank)
        made.add()
        assert made.vector.tolist() == [world.rank] * size


@together
def test_torch_distributed_adds_where_vectors_are_not_in_host_memory(world, comm, group):
    """By gloo, whose vectors are. It finds the ranks through MPI."""
    group.begun = True
    made = DeviceSum(group, 5, torch.device("cpu"))
    for factor in (1, 10):
        made.vector.fill_(factor * (world.rank + 1))
        made.add()
        assert made.vector.tolist() == [factor * comm.size * (comm.size + 1) / 2] * 5
