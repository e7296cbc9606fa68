"""Points that may be left out, and those that may not."""

import numpy as np
import pytest

from asyncfeded.report.thinning import keep, spread


def test_a_short_line_keeps_all_its_points():
    assert keep(np.arange(8.0), most=8).tolist() == list(range(8))


def test_of_every_stretch_the_ends_and_both_peaks_are_kept():
    """16 points in 2 stretches of 8: in the first the peaks are at 3 and 5, in the second at 9 and 14."""
    values = np.array([0, 1, 1, 9, 1, -9, 1, 0, 0, -5, 0, 0, 0, 0, 7, 0.0])
    assert keep(values, most=8).tolist() == [0, 3, 5, 7, 8, 9, 14, 15]


def test_a_peak_beside_a_value_that_is_not_finite_is_kept():
    values = np.zeros(1000)
    values[[100, 500, 700]] = np.nan, 3, -2
    kept = keep(values, most=40)
    assert {500, 700} <= {*kept.tolist()}
    assert len(kept) <= 40


@pytest.mark.parametrize("count", [0, 1, 799, 801, 100_000])
def test_a_line_is_never_longer_than_it_may_be(count):
    kept = keep(np.random.default_rng(0).standard_normal(count))
    assert len(kept) <= min(count, 800)
    assert (np.diff(kept) > 0).all()


def test_windows_show_the_least_and_the_greatest():
    """40 values in 2 windows: 0 to 19 and 20 to 39."""
    values = np.arange(40.0)
    found = spread(values, values, windows=2)
    assert (found.least.tolist(), found.median.tolist(), found.most.tolist()) == ([0, 20], [9.5, 29.5], [19, 39])
    assert found.time_s.tolist() == [9.5, 29.5]


def test_windows_leave_out_what_is_not_finite():
    assert len(spread(np.arange(3.0), np.full(3, np.nan)).median) == 0
    assert spread(np.arange(3.0), np.array([1, np.inf, 3])).most.tolist() == [3]
