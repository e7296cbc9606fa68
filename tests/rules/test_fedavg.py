"""FedAvg weighs each client with its number of samples, as worked out by hand."""

import pytest

from asyncfeded import rules
from rules.models import arrive, start


def test_samples_are_those_of_a_client_whatever_its_K():
    """Clients of 10 and 30 samples; the first trains 3 epochs. 0.25 (4, 0) + 0.75 (0, 4)."""
    rule = rules.load_rule({"name": "fedavg"})
    model, state = start(rule)
    arrive(rule, model, state, 0, [4.0, 0.0], epochs=3, num_samples=10)
    arrive(rule, model, state, 1, [0.0, 4.0], epochs=1, num_samples=30)
    assert model.x.tolist() == pytest.approx([1.0, 3.0])
