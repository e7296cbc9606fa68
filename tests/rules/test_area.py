"""AREA keeps the mean of every client's latest model, as worked out by hand or in numpy."""

import numpy as np
import pytest

from asyncfeded import rules
from rules.models import PARAMS, STATISTICS, first_epochs, new_model, send, start


def test_area_is_the_mean_of_everybody_s_latest_model():
    """Client 0 is twenty times as fast as client 2; who has not come yet counts with x_0."""
    rule, rng = rules.load_rule({"name": "area"}), np.random.default_rng(4)
    model = new_model(clients=3)
    state = rule.init(model, first_epochs(3))
    latest = np.tile(model.x.numpy(), (3, 1))
    for client in rng.choice(3, 300, p=[0.8, 0.16, 0.04]):
        latest[client] = model.base[client].numpy() + rng.random(PARAMS + STATISTICS)
        assert send(rule, model, state, int(client), latest[client]).eta == pytest.approx(1 / 3)
        model.hand_out(int(client))
        assert model.x.numpy() == pytest.approx(latest.mean(0), rel=1e-5)


def test_area_of_M_updates_waits_for_them():
    """0 and 1 send (4, 0) and (0, 4), then 0 sends (8, 8): y = (8, 8), (0, 4) at the second step."""
    rule = rules.load_rule({"name": "area", "M": 2})
    model, state = start(rule)
    steps = [
        (0, [4.0, 0.0], [0.0, 0.0]),
        (1, [0.0, 4.0], [2.0, 2.0]),
        (0, [8.0, 8.0], [2.0, 2.0]),
        (0, [8.0, 8.0], [4.0, 6.0]),
    ]
    for client, w, expected in steps:
        send(rule, model, state, client, w)
        model.hand_out(client)
        assert model.x.tolist() == expected
