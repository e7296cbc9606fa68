"""The delay-adaptive rule shortens its step for a late update, as worked out by hand."""

import pytest

from asyncfeded import rules
from rules.models import arrive, start


@pytest.mark.parametrize(("tau_c", "expected"), [(0, 2 * 2 / 4), (3, 2 * 3 / 4), (4, 2.0), (10**9, 2.0)])
def test_delay_adaptive_step(tau_c, expected):
    """eta_0 2, two clients, tau 4; tau_c 0 is the number of clients, and beyond all delays the step is constant."""
    rule = rules.load_rule({"name": "delay_adaptive", "eta_0": 2.0, "tau_c": tau_c})
    model, state = start(rule)
    for _ in range(4):
        assert arrive(rule, model, state, 0, [1.0, 0.0]).eta == 2.0
    assert arrive(rule, model, state, 1, [0.0, 1.0]).eta == expected
    assert model.x.tolist() == [8.0, expected]
