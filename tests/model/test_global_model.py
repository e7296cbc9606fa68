"""The global model, the bases of the clients, and the distances between them."""

import math

import numpy as np
import pytest
import torch

from asyncfeded.model import kernel
from asyncfeded.model.bases import in_turn
from asyncfeded.model.flat import Entry, Layout
from asyncfeded.model.global_model import GlobalModel

CHUNK = kernel.CHUNK


def model(initial, statistics=0, clients=2):
    """A model whose last `statistics` elements are statistics."""
    size = len(initial)
    entries = (Entry("p", (size - statistics,), 0), Entry("s", (statistics,), size - statistics))
    return GlobalModel(torch.tensor(initial), Layout(entries, size - statistics, size), clients)


def test_distances_are_euclidean():
    """From base (0, 0): x at (3, 4) is 5 away, w at (5, 12) is 13 away."""
    m = model([0.0, 0.0])
    m.hand_out(0)
    m.x.copy_(torch.tensor([3.0, 4.0]))
    assert m.distances(0, torch.tensor([5.0, 12.0])) == (5.0, 13.0)


def test_distances_count_from_the_base_of_that_client():
    m = model([0.0, 0.0])
    m.hand_out(0)
    m.merge(0, torch.tensor([3.0, 4.0]), 1.0)
    m.hand_out(1)
    assert m.distances(1, torch.tensor([3.0, 5.0])) == (0.0, 1.0)


def test_statistics_do_not_count_into_the_distances():
    m = model([0.0, 100.0], statistics=1)
    m.hand_out(0)
    m.x.copy_(torch.tensor([2.0, 500.0]))
    assert m.distances(0, torch.tensor([3.0, -900.0])) == (2.0, 3.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_value_that_is_not_finite_anywhere_makes_the_change_not_finite(bad, place):
    m = model([0.0, 0.0, 0.0], statistics=1)
    m.hand_out(0)
    w = torch.ones(3)
    w[place] = bad
    assert not math.isfinite(m.distances(0, w)[1])


def test_merge_adds_eta_times_the_difference_from_the_base():
    """x = (10, 10), base (0, 0), w = (1, 2), eta 0.5: (10.5, 11)."""
    m = model([0.0, 0.0])
    m.hand_out(0)
    m.x.copy_(torch.tensor([10.0, 10.0]))
    m.merge(0, torch.tensor([1.0, 2.0]), 0.5)
    assert m.x.tolist() == [10.5, 11.0]


@pytest.mark.parametrize(("eta", "expected"), [(0.25, 2.5), (1.0, 4.0), (3.0, 4.0), (0.0, 2.0)])
def test_statistics_are_averaged_with_eta_or_1_if_that_is_less(eta, expected):
    """From 2 towards 4, whatever the base holds."""
    m = model([0.0, 9.0], statistics=1)
    m.hand_out(0)
    m.x[1] = 2.0
    m.merge(0, torch.tensor([0.0, 4.0]), eta)
    assert m.x[1].item() == expected


@pytest.mark.parametrize("eta", [0.0, 0.3, 2.0])
def test_after_a_merge_the_base_is_the_global_model(eta):
    m = model([0.0, 1.0, 1.0], statistics=1)
    m.hand_out(0)
    m.merge(0, torch.tensor([0.7, 3.0, 5.0]), eta)
    assert m.x.tolist() == m.base[0].tolist()
    assert m.base_version[0] == m.version == 1


def test_a_merge_leaves_the_bases_of_the_others_alone():
    m = model([0.0, 0.0])
    m.hand_out(0)
    m.hand_out(1)
    m.merge(0, torch.tensor([1.0, 1.0]), 1.0)
    assert m.base[1].tolist() == [0.0, 0.0]
    assert m.base_version.tolist() == [1, 0]


def test_a_merge_does_not_write_the_weights_received():
    m = model([0.0, 0.0], statistics=1)
    m.hand_out(0)
    w = torch.tensor([1.0, 2.0])
    m.merge(0, w, 0.5)
    assert w.tolist() == [1.0, 2.0]


def test_versions_start_at_0_and_bases_at_none():
    m = model([0.0])
    assert m.version == 0
    assert m.base_version.tolist() == [-1, -1]
    assert m.base_version.dtype == np.int64


def test_hand_out_makes_the_base_the_global_model():
    m = model([1.0, 2.0])
    assert m.hand_out(1).tolist() == [1.0, 2.0]
    assert m.base_version.tolist() == [-1, 0]


def test_hand_out_gives_the_base_itself():
    """It is what the reply is sent from."""
    m = model([1.0, 2.0])
    assert m.hand_out(0).data_ptr() == m.base[0].data_ptr()


def test_hand_out_copies_only_what_is_older():
    """After a merge the base is current: a mark in it would be lost by a copy."""
    m = model([0.0, 0.0])
    m.hand_out(0)
    m.merge(0, torch.tensor([1.0, 1.0]), 1.0)
    m.finish_merge()
    m.base[0][0] = 99.0
    assert m.hand_out(0).tolist() == [99.0, 1.0]


def test_hand_out_copies_what_is_older():
    m = model([0.0, 0.0])
    m.hand_out(0)
    m.hand_out(1)
    m.merge(0, torch.tensor([1.0, 1.0]), 1.0)
    assert m.hand_out(1).tolist() == [1.0, 1.0]


def test_the_initial_model_is_copied():
    initial = torch.zeros(1)
    m = GlobalModel(initial, Layout((Entry("p", (1,), 0),), 1, 1), 1)
    initial.fill_(5.0)
    assert m.x.item() == 0.0


def test_memory_is_the_global_model_and_a_base_for_each_client():
    assert model([0.0, 0.0, 0.0], clients=4).num_bytes == 3 * 4 * (1 + 4)


# --- versions that several clients have


def test_clients_that_were_sent_the_same_version_hold_it_once_and_an_update_of_one_leaves_it_to_the_others():
    """Clients 0 and 2 have version 0. Client 1 merges (3, 3) from (1, 1): x = (2, 2). Then x is mixed with (4, 4)."""
    m = GlobalModel(torch.ones(2), Layout((Entry("p", (2,), 0),), 2, 2), 3, held=1)
    for client in range(3):
        m.hand_out(client)
    assert m.base[0].data_ptr() == m.base[1].data_ptr() == m.base[2].data_ptr()
    m.merge(1, torch.tensor([3.0, 3.0]), 0.5)
    m.hand_out(1)
    assert [base.tolist() for base in m.base] == [[1.0, 1.0], [2.0, 2.0], [1.0, 1.0]]
    assert m.base[0].data_ptr() == m.base[2].data_ptr()
    m.mix(torch.tensor([4.0, 4.0]), 0.5)
    m.hand_out(0)
    m.hand_out(2)
    assert m.base_version.tolist() == [2, 1, 2]
    assert [base.tolist() for base in m.base] == [[3.0, 3.0], [2.0, 2.0], [3.0, 3.0]]
    assert m.num_bytes == 4 * 2 * (1 + 3)  # three at most: while client 0 moved on, 1 and 2 held theirs


def test_who_is_replied_to_while_a_merge_is_carried_out_gets_the_whole_of_it():
    m = model([0.0] * (2 * CHUNK))
    for client in (0, 1):
        m.hand_out(client)
    m.merge(0, torch.full((2 * CHUNK,), 2.0), 0.5)
    m.hand_out(0, CHUNK)
    assert m.hand_out(1).unique().tolist() == [1.0]
    assert m.base[0].data_ptr() == m.base[1].data_ptr()
    m.forget(0)
    m.mix(torch.zeros(2 * CHUNK), 1.0)
    m.hold(0)
    assert m.base[0].data_ptr() != m.base[1].data_ptr()
    assert m.base[1].unique().tolist() == [1.0]


def test_a_version_of_a_checkpoint_is_held_once():
    m = model([0.0], clients=4)
    m.restore(torch.tensor([3.0]), 7, np.array([5, 7, 5, -1]), [(5, torch.tensor([2.0]))], [])
    assert [m.base[i].tolist() for i in range(3)] == [[2.0], [3.0], [2.0]]
    assert m.base[0].data_ptr() == m.base[2].data_ptr()
    m.hand_out(3)
    assert m.base[3].data_ptr() == m.base[1].data_ptr()


# --- what is a client's own


def with_own(clients=2):
    """A parameter, a statistic, and behind them two elements of each client's own; all clients have an order."""
    m = GlobalModel(
        torch.zeros(2), Layout((Entry("p", (1,), 0), Entry("s", (1,), 1)), 1, 2).with_own([("m", (2,))]), clients
    )
    for client in range(clients):
        m.hand_out(client)
    return m


def test_what_a_client_keeps_goes_into_its_next_reply_and_nowhere_else():
    m = with_own()
    w = torch.tensor([3.0, 4.0, 5.0, 6.0])
    assert m.distances(0, w) == (0.0, 3.0)
    m.keep_own(0, w)
    m.merge(0, w[:2], 1.0)
    assert m.hand_out(0).tolist() == [3.0, 4.0, 5.0, 6.0]
    assert m.hand_out(1).tolist() == [3.0, 4.0, 0.0, 0.0]
    assert (m.x.tolist(), m.base[0].tolist()) == ([3.0, 4.0], [3.0, 4.0])
    assert m.num_bytes == 4 * (2 + 2 * 4)


@pytest.mark.parametrize("place", [2, 3])
def test_a_state_that_is_not_finite_makes_the_change_not_finite(place):
    m, w = with_own(), torch.ones(4)
    w[place] = math.inf
    assert not math.isfinite(m.distances(0, w)[1])


def test_what_a_client_keeps_outlives_its_base():
    m = with_own()
    m.keep_own(0, torch.tensor([0.0, 0.0, 5.0, 6.0]))
    for _ in range(2):
        m.forget(0)
        assert (m.base[0].numel(), m.own(0).tolist()) == (0, [5.0, 6.0])
    m.hold(0)
    m.mix(torch.ones(2), 1.0)
    assert m.hand_out(0).tolist() == [1.0, 1.0, 5.0, 6.0]


def test_replies_that_are_kept_for_a_checkpoint_do_not_change_while_clients_move_on():
    """Client 0 sends its state and is merged; its base and its state of before are still there, and given in turn."""
    m = with_own()
    replies, let_go = m.keep()
    for number in (5.0, 6.0):
        w = torch.tensor([number, 1.0, number, number])
        assert m.distances(0, w)[1] == (5.0 if number == 5.0 else 1.0)
        m.keep_own(0, w)
        m.merge(0, w[:2], 1.0)
        assert m.hand_out(0).tolist() == w.tolist()
    assert [row.tolist() for row in in_turn(replies, slice(4), None)] == [[0.0] * 4] * 2
    let_go()
    m.mix(torch.zeros(2), 1.0)
    assert (m.hand_out(1).tolist(), m.num_bytes) == ([0.0] * 4, 4 * (2 + 3 * 4))


# --- part by part

SIZES = [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7]


def random_model(size, statistics, seed=0):
    """A model that has moved since client 0 went out, and the client's w."""
    rng = np.random.default_rng(seed)
    m = model(rng.standard_normal(size).astype(np.float32), statistics)
    m.hand_out(0)
    m.x.add_(torch.from_numpy(rng.standard_normal(size).astype(np.float32)))
    return m, torch.from_numpy(rng.standard_normal(size).astype(np.float32))


def parts(size):
    return [(start, min(start + CHUNK, size)) for start in range(0, size, CHUNK)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("statistics", [0, 1, 5])
def test_an_update_measured_and_merged_in_parts_is_the_same_to_the_bit(size, statistics):
    statistics = min(statistics, size - 1)
    plain, w = random_model(size, statistics)
    chunked, _ = random_model(size, statistics)
    for start, stop in parts(size):
        chunked.measure(0, w, start, stop)
    assert chunked.distances(0, w) == plain.distances(0, w)
    plain.merge(0, w, 0.3)
    plain.finish_merge()
    chunked.merge(0, w, 0.3)
    for _, stop in parts(size):
        sent = chunked.hand_out(0, stop)[:stop].clone()
        assert torch.equal(sent, plain.base[0][:stop])
    assert torch.equal(chunked.x, plain.x)
    assert torch.equal(chunked.base[0], plain.base[0])


@pytest.mark.parametrize("size", SIZES)
def test_a_base_handed_out_in_parts_is_the_global_model(size):
    m, w = random_model(size, 0)
    m.mix(w, 0.5)
    for _, stop in parts(size):
        assert torch.equal(m.hand_out(0, stop)[:stop], m.x[:stop])
    assert m.base_version[0] == m.version
    assert torch.equal(m.base[0], m.x)


def test_an_update_during_whose_arrival_the_model_moves_is_measured_anew():
    """The first part is measured from x, the model moves on, then the second part comes: all from the x of now."""
    m, w = random_model(CHUNK + 3, 0)
    m.measure(0, w, 0, CHUNK)
    m.mix(torch.zeros(CHUNK + 3), 0.5)
    m.measure(0, w, CHUNK, CHUNK + 3)
    moved, change = m.distances(0, w)
    assert moved == pytest.approx(float((m.x.double() - m.base[0].double()).norm()), rel=1e-9)
    assert change == pytest.approx(float((w.double() - m.base[0].double()).norm()), rel=1e-9)


def test_an_update_that_never_arrives_whole_leaves_the_model_and_the_next_update_alone():
    m, w = random_model(2 * CHUNK, 0)
    before, base = m.x.clone(), m.base[0].clone()
    m.measure(0, w, 0, CHUNK)
    assert torch.equal(m.x, before)
    assert torch.equal(m.base[0], base)
    for start, stop in parts(2 * CHUNK):
        m.measure(0, 2 * w, start, stop)
    assert m.distances(0, 2 * w)[1] == pytest.approx(float((2 * w.double() - base.double()).norm()), rel=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, CHUNK - 1, CHUNK, CHUNK + 2, CHUNK + 3, CHUNK + 4])
def test_a_bad_value_in_any_part_is_found_as_it_arrives(bad, at):
    """Parameters of the first and the second chunk, and statistics: the last two."""
    m, w = random_model(CHUNK + 5, 2)
    w[at] = bad
    for start, stop in parts(CHUNK + 5):
        m.measure(0, w, start, stop)
    moved, change = m.distances(0, w)
    assert math.isfinite(moved)
    assert not math.isfinite(change)


def test_another_look_at_x_finishes_the_merge_that_is_under_way():
    m, w = random_model(2 * CHUNK, 0)
    expected = m.x + np.float32(0.5) * (w - m.base[0])
    m.merge(0, w, 0.5)
    m.hand_out(0, CHUNK)
    assert torch.equal(m.x, expected)
    assert torch.equal(m.base[0], expected)
