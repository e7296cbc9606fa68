"""FedAvg and FedProx wait for every client of a round and then take the mean, as worked out by hand."""

from itertools import permutations

import numpy as np
import pytest

from asyncfeded import rules
from asyncfeded.rules.decision import Reply
from rules.models import CLIENTS, PARAMS, STATISTICS, arrive, first_epochs, new_model, send, start

barrier_rule = pytest.mark.parametrize("name", ["fedavg", "fedprox"])


@barrier_rule
def test_a_round_is_the_mean_weighted_with_samples(name):
    """Samples 10, 30, 60 and 100 of 200: 0.05 (20, 0) + 0.15 (0, 20) + 0.3 (10, 10) + 0.5 (2, 4) = (5, 8)."""
    rule = rules.load_rule({"name": name})
    model, state = start(rule, clients=4)
    deltas, samples = [(20, 0), (0, 20), (10, 10), (2, 4)], [10, 30, 60, 100]
    for number in (1, 2):
        etas = [arrive(rule, model, state, i, deltas[i], num_samples=samples[i]).eta for i in (2, 0, 3, 1)]
        assert etas == [0, 0, 0, pytest.approx(0.15)]
        assert model.x.tolist() == pytest.approx([5.0 * number, 8.0 * number])
        assert model.version == number


@barrier_rule
def test_a_round_is_the_same_to_the_bit_in_whatever_order_clients_arrive(name):
    rule, rng = rules.load_rule({"name": name}), np.random.default_rng(3)
    rounds = rng.normal(0.0, 1.0, (2, CLIENTS, PARAMS + STATISTICS)) * [[[1e-4], [1.0], [1e4], [3.0]]]
    outcomes = set()
    for order in permutations(range(CLIENTS)):
        model = new_model()
        state = rule.init(model, first_epochs())
        for deltas in rounds:
            for client in order:
                arrive(rule, model, state, client, deltas[client], num_samples=7 + client)
        outcomes.add(model.x.numpy().tobytes())
    assert len(outcomes) == 1


@barrier_rule
def test_nobody_is_replied_to_before_the_last_and_then_everybody_once(name):
    rule = rules.load_rule({"name": name})
    model, state = start(rule, clients=3, epochs=5)
    for order in permutations(range(3)):
        replies = [arrive(rule, model, state, client, [1.0, 1.0]).replies for client in order]
        assert replies == [(), (), (Reply(0, 5), Reply(1, 5), Reply(2, 5))]


@barrier_rule
def test_a_round_leaves_the_mean_of_the_statistics(name):
    rule = rules.load_rule({"name": name})
    model = new_model(1, 1, clients=2)
    state = rule.init(model, first_epochs(2))
    send(rule, model, state, 1, [0.0, 7.0], num_samples=30)
    send(rule, model, state, 0, [0.0, 3.0], num_samples=10)
    assert model.x.tolist() == pytest.approx([0.0, 6.0])
