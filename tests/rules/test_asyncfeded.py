"""AsyncFedED merges an update by its staleness and adapts K, as worked out by hand."""

import math

import numpy as np
import pytest
import torch

from asyncfeded import rules
from asyncfeded.rules.decision import Reply
from rules.models import first_epochs, new_model, send, start


def asyncfeded(**keys):
    return rules.load_rule({"name": "asyncfeded", **keys})


def stale_by_two(rule, epochs=2):
    """Client 0 moves the model by (3, 4), then client 1 comes with (0, 2.5) from version 0: gamma = 5 / 2.5 = 2."""
    model, state = start(rule, epochs=epochs)
    send(rule, model, state, 0, [3.0 / rule.lambda_ * rule.epsilon, 4.0 / rule.lambda_ * rule.epsilon])
    assert model.x.tolist() == pytest.approx([3.0, 4.0])
    return model, state, send(rule, model, state, 1, [0.0, 2.5])


def test_a_fresh_update_is_merged_with_lambda_over_epsilon():
    """Nothing has moved: gamma = 0, eta = 3 / 2, and x = 1.5 (2, 4)."""
    rule = asyncfeded(**{"lambda": 3.0, "epsilon": 2.0})
    model, state = start(rule)
    decision = send(rule, model, state, 0, [2.0, 4.0])
    assert (decision.gamma, decision.eta) == (0.0, 1.5)
    assert model.x.tolist() == [3.0, 6.0]


def test_gamma_eta_x_and_K_of_a_stale_update():
    """gamma = 2, eta = 1 / (2 + 1), x = (3, 4) + (0, 2.5) / 3, K = 2 + E[(3 - 2) 1] = 3."""
    model, state, decision = stale_by_two(asyncfeded(gamma_bar=3.0))
    assert decision.gamma == 2.0
    assert decision.eta == pytest.approx(1 / 3)
    assert model.x.tolist() == pytest.approx([3.0, 4.0 + 2.5 / 3])
    assert decision.replies == (Reply(1, 3),)
    assert state["K"][1] == 3


def test_lambda_and_epsilon_of_a_stale_update():
    """eta = 3 / (2 + 0.5) = 1.2, x = (3, 4) + 1.2 (0, 2.5) = (3, 7)."""
    model, _, decision = stale_by_two(asyncfeded(**{"lambda": 3.0, "epsilon": 0.5}))
    assert decision.eta == pytest.approx(1.2)
    assert model.x.tolist() == pytest.approx([3.0, 7.0])


def test_a_merge_is_one_version():
    model, _, _ = stale_by_two(asyncfeded())
    assert model.version == 2
    assert model.base_version.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("step", "nearest", "floor"),
    [
        (0.0, 0, 0),
        (0.4, 0, 0),
        (0.5, 1, 0),
        (0.6, 1, 0),
        (1.5, 2, 1),
        (2.5, 3, 2),
        (-0.4, 0, -1),
        (-0.5, 0, -1),
        (-1.5, -1, -2),
    ],
)
def test_rounding_of_the_step_of_K(step, nearest, floor):
    """E[(gamma_bar - gamma) kappa]: to the nearest integer with halves up, or down."""
    assert asyncfeded(gamma_bar=3.0).next_epochs(5, 3.0 - step) == 5 + nearest
    assert asyncfeded(gamma_bar=3.0, rounding="floor").next_epochs(5, 3.0 - step) == 5 + floor


@pytest.mark.parametrize("rounding", ["nearest", "floor"])
def test_a_step_of_K_beyond_all_integers_ends_at_a_bound(rounding):
    """kappa gamma is infinite."""
    rule = asyncfeded(kappa=1e308, rounding=rounding)
    assert rule.next_epochs(5, 1e10) == rule.epochs_min
    assert asyncfeded(kappa=1e308, gamma_bar=1e308, rounding=rounding).next_epochs(5, 0.0) == rule.epochs_max


@pytest.mark.parametrize(("kappa", "expected"), [(0.0, 4), (0.5, 5), (2.0, 8)])
def test_kappa_scales_the_step_of_K(kappa, expected):
    """4 + E[(3 - 1) kappa]."""
    assert asyncfeded(gamma_bar=3.0, kappa=kappa).next_epochs(4, 1.0) == expected


def test_K_stays_within_its_bounds():
    rule = asyncfeded(gamma_bar=3.0, epochs_min=2, epochs_max=6)
    assert rule.next_epochs(5, 0.0) == 6
    assert rule.next_epochs(3, 100.0) == 2


def test_K_of_a_very_stale_client_never_falls_below_1():
    """Client 1 answers every move of 100 by one of 0.01."""
    rule = asyncfeded(kappa=10.0)
    model, state = start(rule)
    for _ in range(5):
        send(rule, model, state, 0, model.base[0] + torch.tensor([100.0, 0.0]))
        decision = send(rule, model, state, 1, model.base[1] + torch.tensor([0.0, 0.01]))
        assert decision.gamma > 1000
        assert decision.replies == (Reply(1, 1),)


def test_K_of_one_client_leaves_the_others_alone():
    _, state, _ = stale_by_two(asyncfeded(gamma_bar=3.0), epochs=4)
    assert state["K"].tolist() == [4 + 3, 4 + 1]


def test_staleness_counts_from_the_download_not_from_the_last_upload():
    """Client 0 uploads (4, 0) and, as lambda is 0.5, downloads x = (2, 0). Client 1, fresh from (0, 0), moves x on:
    gamma = 2 / 6, eta = 0.5 / (1/3 + 1) = 3/8, x = (2, 0) + 3/8 (0, 6) = (2, 2.25). Client 0 comes with (2, 0) + (0, 9):
    gamma = 2.25 / 9 from the download, and would be |(-2, 2.25)| / 9 from the upload.
    """
    rule = asyncfeded(**{"lambda": 0.5})
    model, state = start(rule)
    send(rule, model, state, 0, [4.0, 0.0])
    assert model.x.tolist() == model.base[0].tolist() == [2.0, 0.0]
    send(rule, model, state, 1, [0.0, 6.0])
    assert send(rule, model, state, 0, [2.0, 9.0]).gamma == pytest.approx(0.25)


def test_one_client_alone_is_always_fresh():
    """tau = 0 in every round: x goes on by lambda / epsilon Delta, and eta does not compound."""
    rule = asyncfeded(**{"lambda": 1.0, "epsilon": 2.0})
    model, state = start(rule, clients=1)
    for number in range(1, 11):
        decision = send(rule, model, state, 0, model.base[0] + torch.tensor([2.0, -4.0]))
        assert (decision.gamma, decision.eta) == (0.0, 0.5)
        assert model.x.tolist() == [1.0 * number, -2.0 * number]


def test_eta_of_two_clients_in_turn_does_not_compound():
    """Each meets a model moved once by the other: from the third round on gamma and eta are what they were."""
    rule = asyncfeded(kappa=0.0)
    model, state = start(rule)
    etas = []
    for number in range(40):
        client = number % 2
        etas.append(send(rule, model, state, client, model.base[client] + torch.tensor([1.0, 0.0])).eta)
    assert etas[20:] == pytest.approx([etas[20]] * 20, rel=1e-4)


def test_no_change_of_an_unmoved_model_is_fresh_and_changes_nothing_but_the_version():
    rule = asyncfeded(**{"lambda": 1.0, "epsilon": 4.0})
    model, state = start(rule)
    decision = send(rule, model, state, 0, [0.0, 0.0])
    assert decision == (0.0, 0.25, (Reply(0, 2),))
    assert (model.x.tolist(), model.version) == ([0.0, 0.0], 1)


def test_no_change_against_a_moved_model_is_infinitely_stale_and_changes_nothing_but_the_version():
    rule = asyncfeded()
    model, state = start(rule)
    send(rule, model, state, 0, [3.0, 4.0])
    decision = send(rule, model, state, 1, [0.0, 0.0])
    assert decision == (math.inf, 0.0, (Reply(1, 2),))
    assert (model.x.tolist(), model.version) == ([3.0, 4.0], 2)


def test_the_slightest_change_of_an_unmoved_model_is_fresh():
    rule = asyncfeded()
    model, state = start(rule)
    assert send(rule, model, state, 0, [1e-30, 0.0]).gamma == 0.0


@pytest.mark.parametrize("epochs", [1, 7])
def test_first_epochs_outside_of_the_bounds_are_refused(epochs):
    rule = asyncfeded(epochs_min=2, epochs_max=6)
    with pytest.raises(ValueError, match=rf"steps\) = {epochs} is outside the bounds of K, 2 to 6.*rule\.epochs_m"):
        rule.init(new_model(2, 0, 3), first_epochs(3, epochs))


@pytest.mark.parametrize("epochs", [2, 6])
def test_first_epochs_on_the_bounds_are_taken(epochs):
    assert start(asyncfeded(epochs_min=2, epochs_max=6), 3, epochs)[1]["K"].tolist() == [epochs] * 3


def test_bounds_that_cross_are_refused():
    with pytest.raises(ValueError, match=r"^rule: epochs_min = 5 is above epochs_max = 2"):
        asyncfeded(epochs_min=5, epochs_max=2)


def test_another_rounding_is_refused():
    with pytest.raises(ValueError, match=r"rule: rounding = 'up'.*'nearest' or 'floor'"):
        asyncfeded(rounding="up")


def test_the_paper_s_lambda_is_the_key_not_its_python_name():
    with pytest.raises(ValueError, match=r"unknown key lambda_; did you mean lambda\?"):
        asyncfeded(lambda_=1.0)


@pytest.mark.parametrize(
    ("distance", "gamma"),
    [("euclidean", 5 / 2.5), ("l1", 7 / 2.5), ("linf", 4 / 2.5), ("squared_l2", 25 / 6.25), ("cosine", 1 - 10 / 12.5)],
)
def test_gamma_by_distance(distance, gamma):
    """The model has moved by (3, 4), the client by (0, 2.5)."""
    _, _, decision = stale_by_two(asyncfeded(distance=distance))
    assert decision.gamma == pytest.approx(gamma)
    assert decision.eta == pytest.approx(1 / (gamma + 1))


def test_gamma_by_mahalanobis_distance():
    """v is (9, 16) / 2 after client 0, and (9, 16) / 4 + (0, 6.25) / 2 when client 1 is measured: in that order."""
    _, state, decision = stale_by_two(asyncfeded(distance="mahalanobis", variance_decay=0.5, variance_floor=1e-9))
    v = np.array([9, 16]) / 4 + np.array([0, 6.25]) / 2
    assert state["variance"] == pytest.approx(v)
    assert decision.gamma == pytest.approx(math.sqrt((9 / v[0] + 16 / v[1]) / (6.25 / v[1])))


def test_the_floor_of_the_variance_is_in_units_of_its_mean():
    """With a very large one all parameters weigh the same, whatever the size of the updates: the Euclidean gamma."""
    _, _, decision = stale_by_two(asyncfeded(distance="mahalanobis", variance_floor=1e9))
    assert decision.gamma == pytest.approx(2.0)


@pytest.mark.parametrize("distance", ["euclidean", "l1", "linf", "squared_l2", "cosine", "mahalanobis"])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_gamma_is_a_number_for_updates_of_extreme_size(distance, scale):
    rule = asyncfeded(distance=distance)
    model, state = start(rule)
    send(rule, model, state, 0, [3.0 * scale, 4.0 * scale])
    decision = send(rule, model, state, 1, [0.0, 2.5 * scale])
    assert math.isfinite(decision.gamma)
    assert decision.gamma > 0


@pytest.mark.parametrize("distance", ["l1", "linf", "squared_l2", "cosine", "mahalanobis"])
def test_no_change_has_the_same_gamma_by_every_distance(distance):
    rule = asyncfeded(distance=distance)
    model, state = start(rule)
    assert send(rule, model, state, 0, [0.0, 0.0]).gamma == 0.0
    send(rule, model, state, 0, [3.0, 4.0])
    assert send(rule, model, state, 1, [0.0, 0.0]) == (math.inf, 0.0, (Reply(1, 2),))
