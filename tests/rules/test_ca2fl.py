"""CA2FL calibrates a buffer with every client's latest update, as worked out in numpy."""

import numpy as np
import pytest

from asyncfeded import rules
from rules.models import CLIENTS, PARAMS, STATISTICS, arrive, first_epochs, new_model, start


def test_ca2fl_with_everybody_fresh_is_the_mean_of_deltas():
    rule, rng = rules.load_rule({"name": "ca2fl", "M": CLIENTS}), np.random.default_rng(5)
    model = new_model()
    state = rule.init(model, first_epochs())
    for _ in range(5):
        deltas = rng.normal(0.0, 1.0, (CLIENTS, PARAMS + STATISTICS))
        expected = model.x[:PARAMS].numpy() + deltas[:, :PARAMS].mean(0)
        for client in rng.permutation(CLIENTS):
            arrive(rule, model, state, int(client), deltas[client])
        assert model.x[:PARAMS].numpy() == pytest.approx(expected, abs=1e-5)


def test_ca2fl_calibrates_with_the_latest_update_of_everybody():
    """As written down: h, h_bar and acc in numpy, clients of different speeds, M = 2."""
    rule, rng = rules.load_rule({"name": "ca2fl", "M": 2, "eta_g": 0.5}), np.random.default_rng(6)
    model, state = start(rule, clients=3)
    x, acc, h, h_bar = np.zeros(2), np.zeros(2), np.zeros((3, 2)), np.zeros(2)
    for number in range(1, 41):
        client, delta = int(rng.choice(3, p=[0.6, 0.3, 0.1])), rng.normal(0.0, 1.0, 2)
        acc += delta - h[client]
        h[client] = delta
        if number % 2 == 0:
            x += 0.5 * (h_bar + acc / 2)
            h_bar, acc = h.mean(0), np.zeros(2)
        assert arrive(rule, model, state, client, delta).eta == (0.0 if number % 2 else 0.25)
        assert model.x.numpy() == pytest.approx(x, abs=1e-5)
