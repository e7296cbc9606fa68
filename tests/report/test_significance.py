"""Tests against printed tables of Student's t."""

import math

import pytest

from asyncfeded.report.significance import paired, quantile, upper_tail


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042)])
def test_the_tail_and_the_quantile_are_those_of_the_tables(freedom, t):
    assert upper_tail(t, freedom) == pytest.approx(0.025, rel=1e-3)
    assert quantile(freedom) == pytest.approx(t, rel=1e-3)


def test_a_difference_of_pairs():
    """Differences 1, 2 and 3: mean 2, deviation 1, error 1/sqrt(3), t = 3.464; of 2 degrees p = 1 - t/sqrt(t^2 + 2)."""
    found = paired([2, 4, 6], [1, 2, 3])
    assert (found.pairs, found.mean) == (3, 2)
    assert found.p == pytest.approx(0.0742, abs=1e-4)
    assert (found.low, found.high) == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)), abs=1e-3)


def test_too_few_pairs_and_pairs_without_a_difference_say_nothing():
    assert math.isnan(paired([1], [0]).p)
    assert math.isnan(paired([1, 2, math.nan], [1, 2, 3]).p)
    assert math.isnan(paired([], []).mean)
