"""Deadlines by hand, with a clock that the tests move."""

import math

import pytest

from asyncfeded.wire.deadlines import LISTENING_S, Deadlines
from conftest import num_calls


def test_a_deadline_is_the_median_and_a_multiple_of_the_spread():
    """Of 4, 5, 5, 6, 10: median 5, deviations 1, 0, 0, 1, 5 with median 1."""
    patience = Deadlines(20.0, 1.0)
    for seconds in (4.0, 5.0, 5.0, 6.0, 10.0):
        patience.note(0, 2, seconds)
    assert patience.deadline_s(0, 2) == 5 + 20 * 1


def test_regular_rounds_count_with_a_tenth_of_their_median():
    patience = Deadlines(100.0, 1.0)
    for _ in range(4):
        patience.note(0, 2, 3.0)
    assert patience.deadline_s(0, 2) == pytest.approx(3 + 100 * 0.3)


def test_more_epochs_take_longer_and_fewer_are_not_counted_on():
    patience = Deadlines(100.0, 1.0)
    patience.note(0, 2, 3.0)
    assert patience.deadline_s(0, 6) == pytest.approx(3 * 33.0)
    assert patience.deadline_s(0, 1) == pytest.approx(33.0)


def test_who_has_no_history_has_ten_times_the_longest_deadline_of_the_others():
    patience = Deadlines(100.0, 1.0)
    assert patience.deadline_s(2, 1) == math.inf
    patience.note(0, 1, 1.0)
    patience.note(1, 1, 4.0)
    assert patience.deadline_s(2, 1) == pytest.approx(10 * 44.0)


def test_a_rare_long_round_may_come_again():
    """Every tenth with a test on held-out data: median and spread do not know of it."""
    patience = Deadlines(100.0, 1.0)
    for seconds in [2.0] * 9 + [32.0] + [2.0] * 9:
        patience.note(0, 1, seconds)
    assert patience.deadline_s(0, 1) == 64.0


def test_only_the_last_rounds_count():
    patience = Deadlines(100.0, 1.0)
    for seconds in [1000.0] * 40 + [1.0] * 32:
        patience.note(0, 1, seconds)
    assert patience.deadline_s(0, 1) == pytest.approx(11.0)


def test_no_deadline_is_shorter_than_the_least():
    patience = Deadlines(100.0, 60.0)
    patience.note(0, 1, 1.0)
    assert patience.deadline_s(0, 1) == patience.last_s == 60.0
    patience.note(0, 1, 70.0)
    assert patience.last_s == 70.0


def test_without_patience_nobody_is_ever_given_up():
    patience = Deadlines(0.0, 1.0)
    patience.note(0, 1, 1.0)
    assert patience.deadline_s(0, 1) == patience.last_s == math.inf


def test_time_in_which_the_server_did_not_listen_does_not_count(monkeypatch):
    """It was stopped for an hour between two looks."""
    now = 100.0
    monkeypatch.setattr("asyncfeded.wire.deadlines.time.perf_counter", lambda: now)
    patience = Deadlines(100.0, 1.0)
    now += 0.25
    assert patience.listen() == 0.25
    now += 3600.0
    assert patience.listen() == patience.listened_s == 0.25 + LISTENING_S


def test_a_look_at_many_clients_does_not_work_out_what_is_known():
    """A client without history is compared with 100 others at every look; one of them has made a round since the last."""
    patience = Deadlines(100.0, 1.0)
    for client in range(100):
        patience.note(client, 1, 1.0)
    first = num_calls(lambda: patience.deadline_s(100, 1))
    patience.note(7, 1, 4.0)
    assert num_calls(lambda: patience.deadline_s(100, 1)) < first / 2
    assert patience.deadline_s(100, 1) == pytest.approx(10 * (2.5 + 100 * 1.5))
