"""Delayed Nesterov adds its momentum every n updates and sets K by speed, as worked out by hand or in numpy."""

import numpy as np
import pytest

from asyncfeded import rules
from asyncfeded.rules.decision import Reply
from rules.models import arrive, start


def test_delayed_nesterov_as_written_down():
    rule, rng = rules.load_rule({"name": "delayed_nesterov", "eta": 0.6, "beta": 0.5}), np.random.default_rng(9)
    model, state = start(rule, clients=3)
    x, buf, m = np.zeros((3, 2))
    for number in range(1, 31):
        client, delta = int(rng.choice(3, p=[0.6, 0.3, 0.1])), rng.normal(0.0, 1.0, 2)
        x, buf = x + 0.6 * delta / 3, buf + delta
        if number % 3 == 0:
            m = 0.5 * m + buf / 3
            x, buf = x + 0.6 * 0.5 * m, np.zeros(2)
        assert arrive(rule, model, state, client, delta).eta == pytest.approx(0.2)
        assert model.x.numpy() == pytest.approx(x, rel=1e-4, abs=1e-5)
        assert model.version == number


def test_local_epochs_are_in_proportion_to_the_epochs_done():
    """First K 4. Until client 1 has come, K stays; then 12 and 4 epochs are done, 8 in the mean."""
    rule = rules.load_rule({"name": "delayed_nesterov"})
    model, state = start(rule, epochs=4)
    assert [arrive(rule, model, state, 0, [1.0, 0.0], epochs=4).replies for _ in range(3)] == [(Reply(0, 4),)] * 3
    assert arrive(rule, model, state, 1, [1.0, 0.0], epochs=4).replies == (Reply(1, 2),)  # 4 * 4 / 8
    assert arrive(rule, model, state, 0, [1.0, 0.0], epochs=4).replies == (Reply(0, 6),)  # 4 * 16 / 10 = 6.4
    assert state["K"].tolist() == [6, 2]


def test_local_epochs_settle_where_everybody_arrives_equally_often():
    """A client three times as fast is asked for three times the epochs, and goes on to be: not back and forth."""
    rule = rules.load_rule({"name": "delayed_nesterov", "epochs_max": 100})
    model, state = start(rule, epochs=20)
    seconds_per_epoch, K, due = (1.0, 3.0), [20, 20], [20.0, 60.0]
    for _ in range(200):
        client = due.index(min(due))
        K[client] = arrive(rule, model, state, client, [0.1, 0.0], epochs=K[client]).replies[0].epochs
        due[client] += K[client] * seconds_per_epoch[client]
    assert K == [30, 10]


def test_local_epochs_stay_within_their_bounds():
    rule = rules.load_rule({"name": "delayed_nesterov", "epochs_min": 2, "epochs_max": 5})
    model, state = start(rule, epochs=4)
    for _ in range(9):
        arrive(rule, model, state, 0, [1.0, 0.0], epochs=4)
    assert arrive(rule, model, state, 1, [1.0, 0.0], epochs=4).replies == (Reply(1, 2),)
    assert arrive(rule, model, state, 0, [1.0, 0.0], epochs=4).replies == (Reply(0, 5),)


def test_bounds_of_local_epochs_are_checked():
    with pytest.raises(ValueError, match=r"^rule: epochs_min = 5 is above epochs_max = 2"):
        rules.load_rule({"name": "delayed_nesterov", "epochs_min": 5, "epochs_max": 2})
    with pytest.raises(ValueError, match=r"training\.epochs \(or steps\) = 11 is outside the bounds of K, 1 to 10"):
        start(rules.load_rule({"name": "delayed_nesterov"}), epochs=11)
