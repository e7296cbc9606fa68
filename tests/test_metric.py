"""A metric, its direction, and what it may be called."""

import math

import numpy as np
import pytest

from asyncfeded.metric import DEFAULT, METRIC, Metric, Metrics, check_metrics

HIGH, LOW = Metric("max"), Metric("min", "m")
VALUES = np.array([2.0, math.nan, 5.0, 1.0])


def test_the_direction_says_what_is_best_and_when_a_target_is_reached():
    assert (HIGH.best_of(VALUES), HIGH.worst_of(VALUES)) == (5.0, 1.0)
    assert (LOW.best_of(VALUES), LOW.worst_of(VALUES)) == (1.0, 5.0)
    assert HIGH.reaches(VALUES, 2.0).tolist() == [True, False, True, False]
    assert LOW.reaches(VALUES, 2.0).tolist() == [True, False, False, True]


def test_a_value_is_sum_over_count_and_then_finished():
    assert HIGH.value(3.0, 4.0) == 0.75
    assert Metric("min", finish=math.exp).value(2.0, 4.0) == math.exp(0.5)


@pytest.mark.parametrize(("total", "expected"), [(math.nan, math.nan), (math.inf, math.inf), (1e6, math.inf)])
def test_what_is_not_finite_or_becomes_too_large_stays_a_value(total, expected):
    """`finish` is asked for finite numbers only; math.exp of a million is beyond any float."""
    assert Metric("min", finish=math.exp).value(total, 1.0) == pytest.approx(expected, nan_ok=True)


def test_people_read_a_value_with_its_unit():
    assert (DEFAULT["accuracy"].text(0.5), DEFAULT["accuracy"].label("accuracy")) == ("0.5000", "accuracy")
    assert (LOW.text(1234.567), LOW.label("error"), HIGH.label("psnr")) == ("1234.6 m", "error (m)", "psnr")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"best": "highest"}, """Metric(best='highest'): expected "max" or "min\""""),
        ({"best": "max", "unit": 3}, "Metric(unit=3): expected a text"),
        ({"best": "max", "unit": 33 * "m"}, "at most 32 bytes"),
        ({"best": "max", "finish": 2}, "Metric(finish=2): expected a function of one number"),
    ],
)
def test_a_metric_that_is_none_is_refused_where_it_is_made(given, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the words are compared
        Metric(**given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["accuracy"], "metrics: got list, expected a Metric by name"),
        ({}, "metrics: got none, expected a Metric by name"),
        ({"a": "max"}, 'metrics: a is str, expected a Metric, such as Metric("min")'),
        ({3: HIGH}, "the name 3 cannot be a column of the record; expected a letter"),
        ({"": HIGH}, "the name '' cannot"),
        ({"top 5": HIGH}, "the name 'top 5' cannot"),
        ({"a/b": HIGH}, "the name 'a/b' cannot"),
        ({"5top": HIGH}, "the name '5top' cannot"),
        ({65 * "a": HIGH}, "in all at most 64 bytes"),
        ({"time_s": HIGH}, "time_s is another column of the record"),
        ({"version": HIGH}, "version is another column of the record"),
    ],
)
def test_metrics_that_cannot_be_columns_are_refused(given, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the words are compared
        check_metrics(given)
    assert said in str(caught.value)


def test_metrics_come_back_from_a_file_without_what_finishes_them():
    given = check_metrics({"top-5": Metric("max", "fraction"), "Perplexität": Metric("min", "µ", math.exp)})
    back = Metrics.of_rows(Metrics(given, "Perplexität").rows(), "it")
    assert back == Metrics({"top-5": Metric("max", "fraction"), "Perplexität": Metric("min", "µ")}, "Perplexität")
    assert back.columns == Metrics(given, "top-5").columns == "top-5 max fraction, Perplexität min µ"


def test_rows_of_something_else_are_refused():
    rows = Metrics(DEFAULT, "loss").rows()
    rows["best"][0] = b"big"
    with pytest.raises(ValueError, match=r"it: Metric.best='big'.: expected .*; this program wrote no such file"):
        Metrics.of_rows(rows, "it")
    with pytest.raises(ValueError, match="it: 0 metrics have 0 names, and 0 of them are the goal"):
        Metrics.of_rows(np.zeros(0, METRIC), "it")
