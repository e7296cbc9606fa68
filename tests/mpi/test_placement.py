"""Quotas and the map."""

from contextlib import nullcontext

import numpy as np
import pytest

from asyncfeded.mpi import placement
from asyncfeded.mpi.placement import PLACE, check_groups, numbers, table
from conftest import places

# --- shares


def shares(masks, quotas=None, groups=None):
    masks = np.array(masks, np.uint8)
    quotas = np.full(len(masks), np.inf) if quotas is None else np.array(quotas)
    return placement.share_cores(masks, quotas, np.zeros(len(masks), int) if groups is None else np.array(groups)).tolist()


def test_a_core_that_several_ranks_may_run_on_counts_in_equal_parts():
    """Core 0 is the first rank's alone, core 1 of all three, core 2 of two, core 3 of none."""
    thirds = shares([[1, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0]])
    assert thirds == pytest.approx([1 + 1 / 3, 1 / 3 + 1 / 2, 1 / 3 + 1 / 2])


def test_a_quota_is_shared_by_the_ranks_of_its_group():
    """8 cores for all four ranks, 2 each; two share a quota of 3 cores, one has 0.5 for itself, one has none."""
    assert shares([[1] * 8] * 4, [3.0, 3.0, 0.5, np.inf], [7, 7, 8, 0]) == [1.5, 1.5, 0.5, 2.0]


def test_a_quota_above_the_cores_changes_nothing():
    assert shares([[1, 1]], [64.0]) == [2.0]


# --- the map


def test_the_map_has_a_row_for_every_rank():
    assert table(places("node1", "b", "b", threads=12)) == [
        "rank  host   role    device  cores  threads",
        "0     node1  server  cpu     1      12",
        "1     b      worker  cpu     1      12",
        "2     b      worker  cpu     1      12",
    ]


def test_the_map_says_which_ranks_train_a_client_together():
    together = places("a", "a", "b")
    together["group"] = [-1, 0, 0]
    assert table(together) == [
        "rank  host  role    device  cores  threads  group",
        "0     a     server  cpu     1      1",
        "1     a     worker  cpu     1      1        0",
        "2     b     worker  cpu     1      1        0",
    ]


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        (["cpu", "cuda:0"], "ranks 1-2 train a client together, some on cpu and some on cuda; set device = cpu, or start"),
        (["cuda:1 0000:86:00.0"] * 2, "ranks 1-2 train a client together, and share a GPU: each needs one of its own; take"),
        (["cuda:0", "cuda:1"], ""),
        (["cpu", "cpu"], ""),
    ],
)
def test_ranks_of_a_client_need_a_device_each(devices, words):
    together = places("a", "b", "b")
    together["device"][1:] = devices
    with pytest.raises(ValueError, match=words) if words else nullcontext():
        check_groups([(1, 2)], together)


def test_many_equal_ranks_share_a_row():
    """1 server and 4 hosts of 5 workers with 2 GPUs: on each host 3 on the first, 2 on the second."""
    large = places("head", *(f"n{i // 5}" for i in range(20)))
    large["device"][1:] = [f"cuda:{i % 5 % 2}" for i in range(20)]
    large["cores"] = 1 / 3
    assert table(large) == [
        "rank              host     role    device  cores  threads",
        "0                 head     server  cpu     0.333  1",
        "1,3,5-6,... (12)  4 hosts  worker  cuda:0  0.333  1",
        "2,4,7,... (8)     4 hosts  worker  cuda:1  0.333  1",
    ]


@pytest.mark.parametrize(
    ("some", "words"),
    [([], ""), ([3], "3"), ([0, 1, 2, 3, 7], "0-3,7"), ([0, 2, 4, 6], "0,2,4,6"), ([0, 2, 4, 6, 8, 9], "0,2,4,... (6)")],
)
def test_ranks_are_told_as_ranges(some, words):
    assert numbers(some) == words


def test_the_fields_of_the_map_are_frozen():
    """They stand in records."""
    assert PLACE.names == ("host", "role", "device", "cores", "threads", "group")
