"""ACE steps by the mean of every client's latest update, as worked out in numpy."""

import numpy as np
import pytest

from asyncfeded import rules
from rules.models import arrive, send, start


@pytest.mark.parametrize(("eta_g", "expected"), [(0.0, 1 / 3), (0.7, 0.7)])
def test_ace_steps_by_the_mean_of_everybody_s_latest_update(eta_g, expected):
    rule, rng = rules.load_rule({"name": "ace", "eta_g": eta_g}), np.random.default_rng(8)
    model, state = start(rule, clients=3)
    x, g = np.zeros(2), np.zeros((3, 2))
    for _ in range(50):
        client, delta = int(rng.choice(3, p=[0.6, 0.3, 0.1])), rng.normal(0.0, 1.0, 2)
        g[client] = delta
        x += expected * g.mean(0)
        assert arrive(rule, model, state, client, delta).eta == pytest.approx(expected / 3)
        assert model.x.numpy() == pytest.approx(x, rel=1e-4, abs=1e-5)


def test_rounding_does_not_stay_in_the_mean_of_ace():
    """A first update of 1e8 rounds off the third of 0.3; n steps after it is replaced nothing is left of it."""
    rule = rules.load_rule({"name": "ace"})
    model, state = start(rule, clients=3)
    arrive(rule, model, state, 0, [1e8, 1e8])
    for number in range(1, 10):
        client = number % 3
        send(rule, model, state, client, model.base[client] + 0.0)
        model.hand_out(client)
    assert state["g_bar"].tolist() == [0.0, 0.0]
