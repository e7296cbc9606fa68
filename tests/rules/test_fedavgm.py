"""FedAvgM adds momentum to the mean of a round, as worked out by hand."""

import pytest

from asyncfeded import rules
from rules.models import arrive, start


def test_the_second_round_goes_on_with_half_of_the_first():
    """Means (2, 1) and (4, 0); v = (2, 1), then (5, 0.5); x = 0.1 ((2, 1) + (5, 0.5))."""
    rule = rules.load_rule({"name": "fedavgm", "beta": 0.5, "eta_g": 0.1})
    model, state = start(rule)
    arrive(rule, model, state, 0, [4.0, 0.0])
    arrive(rule, model, state, 1, [0.0, 2.0])
    assert model.x.tolist() == pytest.approx([0.2, 0.1])
    arrive(rule, model, state, 1, [4.0, 0.0])
    arrive(rule, model, state, 0, [4.0, 0.0])
    assert model.x.tolist() == pytest.approx([0.7, 0.15])
