"""FedAT lets tiers of like speed go on by themselves, as worked out by hand."""

import pytest

from asyncfeded import rules
from asyncfeded.rules.decision import Reply
from rules.models import arrive, start


@pytest.fixture
def begun():
    """Four clients in two tiers: clients 2 and 0 come first. Samples 10 and 30: y_1 = 0.25 (4, 0) + 0.75 (0, 4) = (1, 3)."""
    rule = rules.load_rule({"name": "fedat", "tiers": 2})
    model, state = start(rule, clients=4)
    assert arrive(rule, model, state, 2, [4.0, 0.0], num_samples=10).replies == ()
    done = arrive(rule, model, state, 0, [0.0, 4.0], num_samples=30)
    assert done.replies == (Reply(0, 2), Reply(2, 2))
    assert done.eta == pytest.approx(0.75 / 3)
    return rule, model, state


def test_the_fast_tier_has_the_weight_of_the_rounds_of_the_slow_one(begun):
    """T = (2, 1): y_1 has 1 / 3. Another round to (4, 6): T = (3, 1), weights 1 / 4 and 3 / 4."""
    rule, model, state = begun
    assert model.x.tolist() == pytest.approx([1 / 3, 1.0])
    assert arrive(rule, model, state, 1, [9.0, 9.0]).replies == ()
    for client in (0, 2):
        arrive(rule, model, state, client, [4.0 - 1 / 3, 6.0 - 1.0])
    assert model.x.tolist() == pytest.approx([1.0, 1.5])
    assert arrive(rule, model, state, 3, [3.0, 3.0]).replies == (Reply(1, 2), Reply(3, 2))
    assert model.x.tolist() == pytest.approx([0.4 * 4 + 0.6 * 6, 0.4 * 6 + 0.6 * 6])  # T = (3, 2)
    assert state["tier"].tolist() == [0, 1, 0, 1]


def test_a_lost_client_is_not_waited_for(begun):
    """Client 3 has never come: it is of the slow tier, whose only other client has arrived."""
    rule, model, state = begun
    arrive(rule, model, state, 1, [3.0, 0.0])
    assert rule.on_loss(3, model, state) == (Reply(1, 2),)
    assert model.x.tolist() == pytest.approx([0.5 * 1.0 + 0.5 * 3.0, 0.5 * 3.0])


def test_one_tier_is_the_weighted_mean_of_all():
    rule = rules.load_rule({"name": "fedat", "tiers": 1, "mu": 0.0})
    model, state = start(rule)
    arrive(rule, model, state, 0, [4.0, 0.0], epochs=3)
    arrive(rule, model, state, 1, [0.0, 4.0], num_samples=30, epochs=1)
    assert model.x.tolist() == pytest.approx([1.0, 3.0])
