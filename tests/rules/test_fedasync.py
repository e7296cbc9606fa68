"""FedAsync mixes the global model with each local one by its age, as worked out by hand."""

import pytest
import torch

from asyncfeded import rules
from rules.models import arrive, send, start


def test_fedasync_mixes_with_alpha_again_and_again():
    """x = 0.4 (0, 0) + 0.6 (10, 20), and then 0.4 (6, 12) + 0.6 (0, 10): alpha does not compound."""
    rule = rules.load_rule({"name": "fedasync"})
    model, state = start(rule)
    assert send(rule, model, state, 0, [10.0, 20.0]).eta == 0.6
    assert model.x.tolist() == pytest.approx([6.0, 12.0])
    assert send(rule, model, state, 1, [0.0, 10.0]).eta == 0.6
    assert model.x.tolist() == pytest.approx([2.4, 10.8])


@pytest.mark.parametrize("staleness", ["constant", "hinge", "polynomial"])
def test_alpha_of_a_fresh_client_is_the_same_after_many_rounds(staleness):
    rule = rules.load_rule({"name": "fedasync", "staleness": staleness, "alpha": 0.5})
    model, state = start(rule, clients=1)
    assert [arrive(rule, model, state, 0, [1.0, 0.0]).eta for _ in range(50)] == [0.5] * 50


def test_fedasync_with_alpha_1_is_the_last_local_model():
    rule = rules.load_rule({"name": "fedasync", "alpha": 1.0})
    model, state = start(rule)
    for client, w in ((0, [0.3, -7.0]), (1, [0.1, 1e-8]), (0, [-3.3, 1e8])):
        send(rule, model, state, client, w)
        assert torch.equal(model.x, torch.tensor(w))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"staleness": "constant"}, {0: 1, 100: 1}),
        ({"staleness": "hinge", "b": 4, "c": 10.0}, {0: 1, 4: 1, 5: 1 / 11, 6: 1 / 21}),
        ({"staleness": "hinge", "b": 6, "c": 0.5}, {6: 1, 7: 1 / 1.5, 8: 1 / 2}),
        ({"staleness": "polynomial", "p": 0.5}, {0: 1, 3: 1 / 2, 8: 1 / 3}),
        ({"staleness": "polynomial", "p": 2.0}, {0: 1, 1: 1 / 4}),
    ],
)
def test_s_of_tau(keys, expected):
    rule = rules.load_rule({"name": "fedasync", **keys})
    assert {tau: rule.s(tau) for tau in expected} == pytest.approx(expected)
