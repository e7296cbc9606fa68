"""FedAdam makes an Adam step of the mean of a round, as worked out by hand."""

import math

import pytest

from asyncfeded import rules
from rules.models import arrive, start


def test_two_steps_by_hand():
    """One parameter has the mean 2 twice, the other never moves. v begins at 0.1^2, m at 0."""
    rule = rules.load_rule({"name": "fedadam", "eta": 0.5, "beta1": 0.9, "beta2": 0.75, "epsilon": 0.1})
    model, state = start(rule)
    x, m, v = 0.0, 0.0, 0.01
    for _ in range(2):
        arrive(rule, model, state, 0, [1.0, 0.0])
        arrive(rule, model, state, 1, [3.0, 0.0])
        m, v = 0.9 * m + 0.1 * 2.0, 0.75 * v + 0.25 * 4.0
        x += 0.5 * m / (math.sqrt(v) + 0.1)
        assert model.x.tolist() == pytest.approx([x, 0.0])
