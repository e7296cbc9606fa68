"""Intervals, tests and ranks against values by hand and from printed tables."""

import math

import numpy as np
import pytest

from asyncfeded.studies.statistics import holm, interval, permutation_p, quartiles, ranks, resolution, sign_p


def test_the_interval_of_a_median_is_that_of_all_resamples():
    """Of 3 values a resample has its median at the least one in 7 of 27 cases, which is more than 2.5 %."""
    assert interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert interval([5.0]) == (5.0, 5.0, 5.0)
    five = interval([1.0, 2.0, 3.0, 4.0, 50.0])  # three or more of five at an end: 181 of 3125, 5.8 %
    assert five == (3.0, 1.0, 50.0)
    assert math.isnan(interval([]).median)


def test_a_time_that_was_never_reached_is_infinite():
    assert interval([1.0, 2.0, math.inf]) == (2.0, 1.0, math.inf)
    assert interval([1.0, math.inf, math.inf]).median == math.inf


def test_many_values_have_the_same_interval_every_time():
    values = np.random.default_rng(1).normal(size=30)
    found = interval(values)
    assert found == interval(values)
    assert found.low < found.median < found.high


def test_the_permutation_test_counts_signs():
    """All 5 of one sign: 2 of 32. One of 3 against: |1 + 2 - 3| = 0 is not small: all 8 are as large."""
    assert permutation_p([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 32)
    assert permutation_p([1.0, 2.0, -3.0]) == 1.0
    assert permutation_p([0.0, 0.0]) == 1.0
    assert math.isnan(permutation_p([]))


def test_the_sign_test_is_binomial():
    """5 of 5: 2 / 32. 4 of 5: 2 (1 + 5) / 32."""
    assert sign_p(5, 0) == pytest.approx(2 / 32)
    assert sign_p(1, 4) == pytest.approx(12 / 32)
    assert math.isnan(sign_p(0, 0))


def test_several_tests_are_corrected_after_holm():
    """Sorted 0.01, 0.03, 0.04 times 3, 2, 1: 0.03, 0.06 and 0.04, which may not be less than the one before it."""
    assert holm([0.04, 0.01, math.nan, 0.03])[:2] == pytest.approx([0.06, 0.03])
    assert holm([0.04, 0.01, 0.03])[2] == pytest.approx(0.06)
    assert math.isnan(holm([math.nan])[0])


def test_ranks_share_ties_and_have_the_critical_difference_of_the_tables():
    """q of 4 rules at 5 % is 2.569 (Demsar 2006, table 5): 2.569 sqrt(4 * 5 / (6 * 14)) = 1.25."""
    costs = np.tile([1.0, 2.0, 2.0, math.inf], (14, 1))
    found = ranks(costs)
    assert found.mean.tolist() == [1.0, 2.5, 2.5, 4.0]
    assert found.difference == pytest.approx(1.25, abs=0.01)
    assert found.p < 1e-6
    assert math.isnan(ranks(costs[:1]).difference)


def test_what_a_test_set_can_resolve():
    """Of 100 samples at 50 %: 1.96 sqrt(2 * 0.25 / 100) = 13.9 points."""
    assert resolution(0.5, 100) == pytest.approx(0.1386, abs=1e-4)


def test_quartiles_leave_out_what_is_infinite():
    assert quartiles(np.array([0.0, 1.0, 2.0, math.inf])).tolist() == [0.5, 1.0, 1.5]
    assert np.isnan(quartiles(np.array([math.inf]))).all()
