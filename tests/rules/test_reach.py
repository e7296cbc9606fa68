"""Reach as written down, in numpy; its rate from curvature by hand; and that a movement stays within the client's way."""

import math

import numpy as np
import pytest
import torch

from asyncfeded import rules
from asyncfeded.rules.decision import Reply
from rules.models import first_epochs, measure, new_model, start


def arrive(rule, model, state, client, delta, measured=math.nan, epochs=2):
    w = model.base[client] + torch.as_tensor(delta, dtype=torch.float32)
    decision = rule.on_arrival(measure(model, client, w, epochs)._replace(measured=measured), model, state)
    for reply in decision.replies:
        model.hand_out(reply.client)
    return decision


def test_reach_as_written_down():
    rule, rng = rules.load_rule({"name": "reach", "alpha": 0.5, "mu": 0.4, "H": 2.0}), np.random.default_rng(9)
    model, state = start(rule, clients=3)
    x, v, base, versions = np.zeros(2), np.zeros(2), np.zeros((3, 2)), np.zeros(3)
    for number in range(1, 41):
        client, delta = int(rng.choice(3, p=[0.6, 0.3, 0.1])), rng.normal(0.0, 1.0, 2)
        left = base[client] + delta + 0.4 * (number - 1 - versions[client]) * v - x
        step = np.clip(left, np.minimum(delta, 0), np.maximum(delta, 0))
        move = 0.5 * step + 0.4 * v
        v, x = v + (move - v) / 6.0, x + move
        base[client], versions[client] = x, number
        assert arrive(rule, model, state, client, delta).eta == 0.5
        assert model.x.numpy() == pytest.approx(x, rel=1e-4, abs=1e-5)
        assert state["v"].numpy() == pytest.approx(v, rel=1e-4, abs=1e-5)
        assert model.version == number


def test_without_momentum_the_model_stays_within_what_the_clients_sent():
    """Whatever the order and however stale: no coordinate leaves the span of all w and the start."""
    rule, rng = rules.load_rule({"name": "reach", "alpha": 1.0, "mu": 0.0}), np.random.default_rng(1)
    model = new_model(6, 0, 4)
    state = rule.init(model, first_epochs(4))
    low, high = torch.zeros(6), torch.zeros(6)
    for _ in range(200):
        client, delta = int(rng.integers(4)), torch.from_numpy(rng.normal(0.0, 1.0, 6).astype(np.float32))
        w = model.base[client] + delta
        low, high = torch.minimum(low, w), torch.maximum(high, w)
        before = model.x.clone()
        arrive(rule, model, state, client, delta)
        assert torch.all((model.x - before).abs() <= delta.abs() * (1 + 1e-6) + 1e-6)
        assert torch.all(model.x >= low - 1e-5)
        assert torch.all(model.x <= high + 1e-5)


@pytest.mark.parametrize(("n", "far"), [(1, 0.6), (4, 12 / 7), (9, 81 / 29)])
def test_clients_that_want_the_same_move_the_model_by_about_the_square_root_of_their_number(n, far):
    """All want 1 in turn, from bases n - 1 updates old: n arrivals move it by sqrt(n) alpha n / (1 + alpha (n - 1))."""
    rule = rules.load_rule({"name": "reach"})
    model, state = start(rule, clients=n)
    for _ in range(80):
        before = model.x.clone()
        for client in range(n):
            arrive(rule, model, state, client, [1.0, -1.0])
    assert (model.x - before).numpy() == pytest.approx([far, -far], rel=0.01)


def test_the_rate_is_one_over_the_root_mean_square_of_all_curvatures():
    """Of 2 clients one measures 1, then 7, and the other 5: 1, (1 + 49) / 2 = 25, and (25 + 25) / 2 in squares.

    The rate is half of it at first, and the whole after 10 rounds of both.
    """
    rule = rules.load_rule({"name": "reach", "c": 0.5})
    model, state = start(rule)

    def rate(client, measured):
        return arrive(rule, model, state, client, [1.0, 1.0], measured).replies[0].learning_rate

    assert rate(0, math.nan) == 0.0  # that of the config
    rates = [rate(0, 1.0), rate(0, 7.0), rate(1, 5.0)]
    assert rates == pytest.approx([0.55 * 0.5, 0.6 * 0.5 / 5, 0.65 * 0.5 / 5])
    assert [rate(1, none) for none in (math.inf, 0.0, math.nan)] == [rates[2]] * 3  # these are no curvatures
    assert [rate(1, 5.0) for _ in range(9)][5:] == pytest.approx([0.095, 0.1, 0.1, 0.1])


def test_a_loss_that_is_flat_gives_no_rate_without_end():
    rule = rules.load_rule({"name": "reach"})
    model, state = start(rule)
    rates = [arrive(rule, model, state, 0, [1.0, 1.0], 1e-300).replies[0].learning_rate for _ in range(12)]
    assert rates[-1] == max(rates) == 1e6


def test_a_rate_of_the_config_is_left_alone_and_nothing_is_measured():
    rule = rules.load_rule({"name": "reach", "rate": "training"})
    model, state = start(rule)
    assert rules.measured_for(rule) == ""
    assert arrive(rule, model, state, 0, [1.0, 1.0], 3.0).replies == (Reply(0, 2),)
    assert rules.measured_for(rules.load_rule({"name": "reach"})) == "curvature"


def test_local_epochs_are_in_proportion_to_speed_within_their_bounds():
    rule = rules.load_rule({"name": "reach", "epochs_max": 3})
    model, state = start(rule)
    assert [arrive(rule, model, state, 0, [1.0, 0.0]).replies[0].epochs for _ in range(3)] == [2] * 3
    assert arrive(rule, model, state, 1, [1.0, 0.0]).replies[0].epochs == 1  # 2 * 2 / 4
    assert arrive(rule, model, state, 0, [1.0, 0.0]).replies[0].epochs == 3  # 2 * 8 / 5 = 3.2
    with pytest.raises(ValueError, match=r"^rule: epochs_min = 5 is above epochs_max = 2"):
        rules.load_rule({"name": "reach", "epochs_min": 5, "epochs_max": 2})


def test_a_momentum_that_cannot_be_is_told_in_one_sentence():
    with pytest.raises(ValueError, match=r"^rule: mu = 1.5: input should be less than 1, or input should be 'auto'$"):
        rules.load_rule({"name": "reach", "mu": 1.5})
    with pytest.raises(ValueError, match=r"^rule: H = 0.5: input should be greater than or equal to 1$"):
        rules.load_rule({"name": "reach", "H": 0.5})
