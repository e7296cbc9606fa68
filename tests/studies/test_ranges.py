"""Ranges are drawn from evenly, know their ends, and go on beyond them."""

import numpy as np
import pytest

from asyncfeded.studies.ranges import Range, draw


def of(low, high, scale="log"):
    return Range.model_validate({"from": low, "to": high, "scale": scale})


def test_a_logarithm_is_drawn_evenly_and_whole_numbers_stay_whole():
    """Of 0.01 to 1 half of the draws are below 0.1; of 1 to 100 as whole numbers half below 10."""
    rng = np.random.default_rng(0)
    drawn = [draw({"rate": of(0.01, 1.0), "M": of(1, 100), "word": ["a", "b"]}, rng) for _ in range(400)]
    assert 160 < sum(one["rate"] < 0.1 for one in drawn) < 240
    assert 160 < sum(one["M"] < 10 for one in drawn) < 240
    assert {type(one["M"]) for one in drawn} == {int}
    assert {one["word"] for one in drawn} == {"a", "b"}
    assert all(0.01 <= one["rate"] <= 1.0 and one["rate"] == float(f"{one['rate']:.3g}") for one in drawn)


@pytest.mark.parametrize(
    ("range_", "value", "end"),
    [
        (of(0.01, 1.0), 0.015, "from"), (of(0.01, 1.0), 0.02, ""), (of(0.01, 1.0), 0.7, "to"),
        (of(0.0, 1.0, "linear"), 0.09, "from"), (of(0.0, 1.0, "linear"), 0.89, ""), (of(1, 4), 4, "to"), (of(1, 4), 2, ""),
    ],
)  # fmt: skip
def test_the_outermost_tenth_is_an_end(range_, value, end):
    assert range_.end(value) == end


def test_a_range_goes_on_by_half_of_its_length():
    """Two decades go on by one; 0.5 goes on by 0.25; whole numbers by at least one."""
    assert (of(0.01, 1.0).beyond("from").from_, of(0.01, 1.0).beyond("from").to) == (0.001, 0.01)
    assert of(0.01, 1.0).beyond("to").to == 10.0
    assert of(0.0, 0.5, "linear").beyond("to").to == 0.75
    assert (of(2, 3).beyond("to").from_, of(2, 3).beyond("to").to) == (3, 4)


@pytest.mark.parametrize(
    ("low", "high", "words"), [(1.0, 0.1, "is not below to = 0.1; swap"), (0.0, 1.0, "no logarithm; give more than 0")]
)
def test_a_range_without_values_is_refused(low, high, words):
    with pytest.raises(ValueError, match=words):
        of(low, high)
