"""FedBuff collects M updates and then makes one step, as worked out by hand."""

import math

import pytest

from asyncfeded import rules
from asyncfeded.rules.decision import Reply
from rules.models import arrive, first_epochs, new_model, send, start


def test_fedbuff_steps_every_M_updates_by_their_weighted_mean():
    """First step: (2 + 4) / 2 of fresh ones. Then client 2 of version 0, s = 2^-0.5, and a fresh client 0."""
    rule = rules.load_rule({"name": "fedbuff", "M": 2, "eta_g": 0.5})
    model, state = start(rule, clients=3)
    assert arrive(rule, model, state, 0, [2.0, 0.0]) == (0.0, 0.0, (Reply(0, 2),))
    assert (model.version, model.x.tolist()) == (0, [0.0, 0.0])
    assert arrive(rule, model, state, 1, [4.0, 0.0]).eta == 0.25
    assert (model.version, model.x.tolist()) == (1, [1.5, 0.0])
    arrive(rule, model, state, 2, [0.0, 8.0])
    arrive(rule, model, state, 1, [1.0, 0.0])
    assert model.x.tolist() == pytest.approx([1.5 + 0.25 * 1.0, 0.25 * 8 / math.sqrt(2)])


def test_fedbuff_of_one_update_without_weights_is_asynchronous_averaging():
    """The sum of all deltas, as stale as they may be."""
    rule = rules.load_rule({"name": "fedbuff", "M": 1, "p": 0.0})
    model, state = start(rule)
    for client, delta in ((0, [1.0, 2.0]), (0, [4.0, 8.0]), (1, [16.0, 32.0])):
        assert arrive(rule, model, state, client, delta).eta == 1.0
    assert model.x.tolist() == [21.0, 42.0]


def test_a_buffer_leaves_the_weighted_mean_of_the_statistics():
    """Fresh 5 (s = 1) and stale 3 (s = 1/2, tau = 3): the mean is (5 + 1.5) / 1.5, its share 1.5 / 2."""
    rule = rules.load_rule({"name": "fedbuff", "M": 2})
    model = new_model(1, 1, clients=2)
    state = rule.init(model, first_epochs(2))
    for _ in range(6):
        send(rule, model, state, 0, [0.0, 1.0])
        model.hand_out(0)
    assert model.version == 3
    send(rule, model, state, 0, [0.0, 5.0])
    send(rule, model, state, 1, [0.0, 3.0])
    assert model.x[1].item() == pytest.approx(0.25 * 1.0 + 0.75 * 6.5 / 1.5)
