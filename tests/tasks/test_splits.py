"""Rows are split over clients with none lost and none twice, by laws that can be worked by hand."""

import numpy as np
import pytest

from asyncfeded.seeds import Stream, numpy_rng
from asyncfeded.tasks.splits import hold_back, split_alike, split_by_class, split_by_group, split_dirichlet, split_even

LABELS = np.repeat([5, 2, 9, 7], [12, 8, 6, 4])
"""Four classes, 30 rows."""
LAWS = {
    "even": lambda clients, rng: split_even(30, clients, rng),
    "dirichlet": lambda clients, rng: split_dirichlet(LABELS, clients, 1.0, 1, rng),
    "class": lambda clients, rng: split_by_class(LABELS, clients, 2, rng),
    "group": lambda clients, rng: split_by_group(LABELS, clients, "here"),
}


def rng(seed=0):
    return numpy_rng(seed, Stream.SPLIT)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("clients", [1, 3, 4])
def test_every_row_is_dealt_once_and_always_alike(law, clients):
    parts = LAWS[law](clients, rng())
    assert sorted(np.concatenate(parts).tolist()) == list(range(30))
    assert min(map(len, parts)) > 0
    for one, two in zip(parts, LAWS[law](clients, rng()), strict=True):
        assert np.array_equal(one, two)


@pytest.mark.parametrize("law", ["even", "dirichlet", "class"])
def test_another_seed_gives_another_split(law):
    assert any(
        len(one) != len(two) or (one != two).any()
        for one, two in zip(LAWS[law](3, rng()), LAWS[law](3, rng(1)), strict=True)
    )


def classes(parts):
    return [sorted(set(LABELS[part].tolist())) for part in parts]


def test_each_client_gets_so_many_classes_and_each_class_goes_to_as_many_clients():
    """Four clients of 2 of 4 classes stand in a circle: each class has 2 clients, which get a half each."""
    parts = split_by_class(LABELS, 4, 2, rng())
    assert [len(some) for some in classes(parts)] == [2, 2, 2, 2]
    for label, half in ((5, 6), (2, 4), (9, 3), (7, 2)):
        assert [n for part in parts if (n := (LABELS[part] == label).sum())] == [half, half]


@pytest.mark.parametrize(("clients", "each", "counts"), [(1, 1, [4]), (2, 1, [2, 2]), (3, 1, [2, 2, 2]), (2, 9, [4, 4])])
def test_no_class_is_without_a_client(clients, each, counts):
    """4 classes over 3 clients: 2 each, of which 2 classes have two clients."""
    assert [len(some) for some in classes(split_by_class(LABELS, clients, each, rng()))] == counts


def test_groups_are_dealt_in_turn_by_name():
    """b, c, d, e over two clients: b and d, c and e."""
    parts = split_by_group(np.array(["e", "b", "c", "b", "d"]), 2, "here")
    assert [part.tolist() for part in parts] == [[1, 3, 4], [2, 0]]
    with pytest.raises(ValueError, match="here has 4 groups to train on, too few for 5 clients; lower clients to 4"):
        split_by_group(np.array(["e", "b", "c", "b", "d"]), 5, "here")


@pytest.mark.parametrize(("share", "count"), [(0.1, 3), (0.5, 15), (0.001, 1), (0.99, 29)])
def test_so_many_rows_are_held_back_and_always_the_same(share, count):
    train, test = hold_back(30, share, "here")
    assert (len(test), sorted([*train, *test])) == (count, list(range(30)))
    assert np.array_equal(test, hold_back(30, share, "here")[1])


def test_a_single_row_cannot_be_held_back():
    with pytest.raises(ValueError, match=r"1 samples, too few to hold back 0\.1 of them for testing \(task\.test_share\)"):
        hold_back(1, 0.1, "here")


def test_too_few_rows_for_a_dirichlet_split_are_refused():
    with pytest.raises(ValueError, match=r"30 training images are too few for 4 clients of at least 8; lower clients"):
        split_dirichlet(LABELS, 4, 1.0, 8, rng())


def test_rows_to_test_on_are_dealt_as_those_to_train_on():
    """Client 0 trains on 2 of 3 rows of a and client 1 on the third; b is client 1's alone; nobody trains on c."""
    kinds = np.array(["a", "b", "a", "c", "a", "b", "a", "a", "a"])
    parts = split_alike(kinds, [np.array(["a", "a"]), np.array(["b", "a", "b"]), np.array(["d"])])
    assert [part.tolist() for part in parts] == [[0, 2, 4, 6], [1, 5, 7, 8], []]
