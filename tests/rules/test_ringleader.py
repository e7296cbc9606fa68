"""Ringleader gathers a table, then each client moves the model once by its mean, as worked out by hand."""

import numpy as np
import pytest

from asyncfeded import rules
from asyncfeded.rules.decision import Reply
from rules.models import arrive, start

GATHER = [(0, [2.0, 0.0]), (0, [4.0, 0.0]), (1, [0.0, 8.0])]


@pytest.fixture
def begun():
    """Two clients; the table is (3, 0), of two updates, and (0, 8)."""
    rule = rules.load_rule({"name": "ringleader", "eta_g": 0.5})
    model, state = start(rule)
    for client, delta in GATHER:
        assert arrive(rule, model, state, client, delta)[1:] == (0.0, (Reply(client, 2),))
    assert (model.version, state["moving"][0]) == (0, 1)
    return rule, model, state


def test_each_client_moves_the_model_once_in_a_round(begun):
    """Client 0 sends (6, 0): its mean is (4, 0), the step 0.5 (2, 4). Its next one is kept. Client 1 sends (0, 0)."""
    rule, model, state = begun
    assert arrive(rule, model, state, 0, [6.0, 0.0]).eta == pytest.approx(0.5 / (2 * 3))
    assert model.x.tolist() == pytest.approx([1.0, 2.0])
    arrive(rule, model, state, 0, [10.0, 0.0])
    assert model.x.tolist() == pytest.approx([1.0, 2.0])
    arrive(rule, model, state, 1, [0.0, 0.0])
    assert model.x.tolist() == pytest.approx([1.0 + 1.0, 2.0 + 1.0])  # (4, 0) and (0, 4)
    assert state["b"].tolist() == [1, 0]
    assert state["G"].tolist() == [[10.0, 0.0], [0.0, 0.0]]
    arrive(rule, model, state, 1, [0.0, 2.0])
    assert (model.version, state["moving"][0], state["g_bar"].tolist()) == (2, 1, [5.0, 1.0])


def test_a_lost_client_is_not_waited_for(begun):
    rule, model, state = begun
    arrive(rule, model, state, 0, [6.0, 0.0])
    arrive(rule, model, state, 0, [2.0, 0.0])
    assert rule.on_loss(1, model, state) == ()
    assert (state["moving"][0], state["b"].tolist()) == (1, [1, 0])
    arrive(rule, model, state, 0, [2.0, 0.0])
    assert model.version == 2


def test_staleness_is_at_most_twice_the_clients_less_two():
    rule, rng = rules.load_rule({"name": "ringleader"}), np.random.default_rng(0)
    model, state = start(rule, clients=4)
    staleness = []
    for _ in range(400):
        client = int(rng.choice(4, p=[0.7, 0.2, 0.07, 0.03]))
        staleness.append(model.version - int(model.base_version[client]))
        arrive(rule, model, state, client, [1.0, 1.0])
    assert max(staleness) <= 2 * 4 - 2
    assert model.version > 20
