"""Clients' lots and the fate of rounds: declared times, failures, and their independence of everything but the seed."""

import numpy as np
import pytest

from asyncfeded.config import Config
from asyncfeded.training.heterogeneity import draw
from asyncfeded.wire.messages import Order

SIZES = np.array([100, 200, 50])


def lots(**heterogeneity):
    config = Config(limits={"updates": 1}, training={"epochs": 2, "batch_size": 8}, heterogeneity=heterogeneity, seed=3)
    return draw(config, SIZES)


def test_lists_are_by_client_and_repeated():
    clients = lots(slowdown=[1, 4], batch_size=[16, 32, 64], epochs=[5], delay_s=[0.5]).clients
    assert clients["slowdown"].tolist() == [1, 4, 1]
    assert clients["batch_size"].tolist() == [16, 32, 64]
    assert clients["epochs"].tolist() == [5, 5, 5]
    assert clients["delay_s"].tolist() == [0.5, 0.5, 0.5]


def test_empty_lists_take_the_values_of_training():
    clients = lots().clients
    assert clients["batch_size"].tolist() == [8, 8, 8]
    assert clients["epochs"].tolist() == [2, 2, 2]


def test_a_round_takes_its_samples_times_epochs_times_slowdown():
    clients = lots(slowdown=[1, 3], sample_s=0.01).clients
    assert clients["round_s"].tolist() == pytest.approx([100 * 2 * 0.01, 200 * 2 * 0.01 * 3, 50 * 2 * 0.01])


def test_declared_rounds_take_their_time_at_the_first_k_and_in_proportion_at_others():
    plan = lots(round_s=[1.4, 0.26, 0.42], delay_s=[0.1])
    assert plan.due(Order(0, 0, 0, 2), 10.0) == pytest.approx(10.0 + 0.1 + 1.4)
    assert plan.due(Order(1, 0, 0, 6), 0.0) == pytest.approx(0.1 + 3 * 0.26)


def test_on_the_wall_clock_a_client_lets_the_rest_of_a_declared_round_pass():
    plan = lots(round_s=[1.4, 0.26, 0.42], delay_s=[0.1])
    assert plan.pause_s(Order(0, 0, 0, 2), 0.4) == pytest.approx(0.1 + 1.4 - 0.4)
    assert plan.pause_s(Order(1, 0, 0, 6), 0.7) == pytest.approx(0.1 + 3 * 0.26 - 0.7)
    assert plan.pause_s(Order(2, 0, 0, 2), 0.7) == pytest.approx(0.1)


def test_on_the_wall_clock_an_estimated_round_takes_what_it_takes_and_failures_cost_in_proportion():
    assert lots(sample_s=5.0).pause_s(Order(0, 0, 0, 2), 0.4) == 0.0
    failing = lots(error_probability=0.9, round_s=[2.0])
    lost = failing.lost_rounds(0, 0)
    assert failing.pause_s(Order(0, 0, 0, 2), 0.5) == pytest.approx(1.5 + 2.0 * lost)
    assert lost > 0


def test_the_fastest_of_drawn_speeds_is_not_slowed_and_the_spread_is_lognormal():
    config = Config(limits={"updates": 1}, heterogeneity={"slowdown_sigma": 0.5})
    slowdown = draw(config, np.full(4000, 1)).clients["slowdown"]
    assert slowdown.min() == 1.0
    assert np.std(np.log(slowdown)) == pytest.approx(0.5, rel=0.05)


def test_failures_come_with_their_probability_and_cost_one_and_a_half_rounds_each():
    plan = lots(error_probability=0.25)
    lost = np.array([plan.lost_rounds(client, number) for client in range(3) for number in range(3000)])
    assert np.mean(lost == 0) == pytest.approx(0.75, abs=0.02)
    # failures before a success: p / (1 - p) = 1/3 on average, each uniform(0, 3)
    assert lost.mean() == pytest.approx(1 / 3 * 1.5, rel=0.06)
    single = lost[(lost > 0) & (lost < 3)]
    assert single.min() < 0.05


def test_without_errors_nothing_is_lost():
    assert {lots().lost_rounds(0, number) for number in range(100)} == {0.0}


def test_failures_add_to_the_time_of_a_round():
    plan = lots(error_probability=0.9, round_s=[2.0])
    lost = plan.lost_rounds(1, 7)
    assert lost > 0
    assert plan.due(Order(1, 7, 0, 2), 0.0) == pytest.approx(2.0 * (1 + lost))


def test_a_round_has_the_same_fate_whoever_asks_and_whenever():
    one, other = lots(error_probability=0.5), lots(error_probability=0.5)
    asked = [(c, r) for c in range(3) for r in range(20)]
    forwards = {key: one.lost_rounds(*key) for key in asked}
    assert {key: other.lost_rounds(*key) for key in reversed(asked)} == forwards
    assert len(set(forwards.values())) > 10


@pytest.mark.parametrize(
    "wrong",
    [{"slowdown": [0.5]}, {"slowdown": []}, {"error_probability": 1.0}, {"delay_s": [-1]}, {"delay_s": []}, {"round_s": [0]},
     {"batch_size": [0]}, {"epochs": [0]}, {"sample_s": 0}, {"slowdown_sigma": -1}],
)  # fmt: skip
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        lots(**wrong)
