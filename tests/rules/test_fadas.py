"""FADAS makes an adaptive step from each buffer, as worked out by hand or in numpy."""

import numpy as np
import pytest

from asyncfeded import rules
from rules.models import arrive, first_epochs, new_model, start


@pytest.mark.parametrize("betas", [{"beta1": 0.0, "beta2": 0.0}, {}])
def test_the_first_step_of_fadas_is_eta_times_the_sign(betas):
    """m = (1 - beta1) D and v = (1 - beta2) D^2: the ratio is sign(D), 0.1 / sqrt(0.01) = 1 with the defaults."""
    rule = rules.load_rule({"name": "fadas", "M": 1, "eta": 0.5, **betas})
    model = new_model(3, 0, 1)
    state = rule.init(model, first_epochs(1))
    assert arrive(rule, model, state, 0, [3.0, -0.01, 0.0]).eta == 0.5
    assert model.x.tolist() == pytest.approx([0.5, -0.5, 0.0], rel=1e-4)


def test_fadas_as_written_down():
    rule = rules.load_rule({"name": "fadas", "M": 2, "eta": 0.3, "beta1": 0.5, "beta2": 0.7, "epsilon": 0.1})
    rng = np.random.default_rng(7)
    model, state = start(rule)
    x, m, v, v_max = np.zeros((4, 2))
    for scale in (1.0, 5.0, 0.1, 0.1):
        deltas = scale * rng.normal(0.0, 1.0, (2, 2))
        m = 0.5 * m + 0.5 * deltas.mean(0)
        v = 0.7 * v + 0.3 * deltas.mean(0) ** 2
        v_max = np.maximum(v_max, v)
        x = x + 0.3 * m / (np.sqrt(v_max) + 0.1)
        assert [arrive(rule, model, state, client, deltas[client]).eta for client in (0, 1)] == [0.0, 0.3]
        assert model.x.numpy() == pytest.approx(x, rel=1e-5)


def test_fadas_bounds_its_step_by_the_longest_delay_of_the_buffer():
    """Client 1 comes with tau 4, and client 0 after it; the next buffer is fresh again."""
    rule = rules.load_rule({"name": "fadas", "M": 2, "eta": 0.9, "tau_c": 3})
    model, state = start(rule)
    for _ in range(8):
        decision = arrive(rule, model, state, 0, [1.0, 1.0])
    assert (model.version, decision.eta) == (4, 0.9)
    etas = [arrive(rule, model, state, client, [1.0, 1.0]).eta for client in (1, 0, 0, 0)]
    assert etas == [0.0, 0.25, 0.0, 0.9]
