"""The search: what it tries next follows from the rows; halving, extension beyond an end, and what it chooses."""

import numpy as np
import pytest

from asyncfeded.metric import Metric
from asyncfeded.studies import study
from asyncfeded.studies.rows import Row, of_failure
from asyncfeded.studies.search import as_toml_table, search


def scored(run, mean):
    return Row(run.task, run.rule, 0.1, 1000, run.values, "", "done", "accuracy", Metric("max"), mean, mean, mean)


def go(grid, rule, score):
    """Search to the end; the rounds that were asked for, and the end. `score` gives the mean of values."""
    rows, rounds = {}, []
    while (found := search(grid, "digits", rule, rows)).missing:
        rounds.append(found.missing)
        rows |= {run.name: scored(run, score(run.values)) for run in found.missing}
    return rounds, found


def off(values, rate):
    """How far the learning rate is from another."""
    return abs(np.log(values["training.learning_rate"] / rate))


def of_40(grid):
    """The same study with 40 trials."""
    return grid.model_copy(update={"tuning": grid.tuning.model_copy(update={"trials": 40})})


@pytest.fixture
def grid(path):
    return study.load_study_grid(path)


def test_the_better_half_goes_on_for_the_whole_time(grid):
    """The best alpha is 0.5, in the middle: 4 trials, then 2 of them."""
    rounds, found = go(
        grid, "hinge", lambda values: -abs(values["rule.alpha"] - 0.5) - abs(np.log(values["training.learning_rate"] / 0.05))
    )
    assert [len(some) for some in rounds[:2]] == [4, 2]
    assert [some[0].config.limits.seconds for some in rounds[:2]] == [1.0, 2.0]
    assert all(run.values in [one.values for one in rounds[0]] for run in rounds[1])
    assert found.values in [one.values for one in rounds[-1]] or found.values in [one.values for one in rounds[1]]


def test_the_search_goes_on_from_any_row(grid):
    """Half of the first round is there: the other half is missing; trials are the same every time."""
    first = search(grid, "digits", "hinge", {})
    rows = {run.name: scored(run, 0.5) for run in first.missing[:2]}
    left = search(grid, "digits", "hinge", rows)
    assert [run.name for run in left.missing] == [run.name for run in first.missing[2:]]
    assert (left.round, left.values) == (0, {})


def test_a_range_goes_on_beyond_the_end_that_the_best_lies_at(grid):
    """More of lambda is better: its range goes on; then no more extension is allowed, and that is told."""
    _, found = go(of_40(grid), "asyncfeded", lambda values: values["rule.lambda"])
    assert found.trials == 40 + 20
    assert found.values["rule.lambda"] > 3.0
    assert found.ranges["rule.lambda"] == "0.1 to 3, then 3 to 16.4"
    assert "rule.lambda" in found.at_end


def test_a_range_at_a_bound_of_its_rule_stays(grid):
    """alpha may not be above 1: only the learning rate could go on, and its best is in the middle."""
    wide = grid.model_copy(update={"tuning": grid.tuning.model_copy(update={"trials": 40})})
    rounds, found = go(
        wide, "hinge", lambda values: values["rule.alpha"] - abs(np.log(values["training.learning_rate"] / 0.055)) / 9
    )
    assert len(rounds) == 2
    assert found.ranges["rule.alpha"] == "0.1 to 1"
    assert found.at_end == ("rule.alpha",)


def test_trials_that_fail_lose_and_if_all_do_nothing_is_chosen(grid):
    rows = {}
    while (found := search(grid, "digits", "hinge", rows)).missing:
        rows |= {run.name: of_failure(run) for run in found.missing}
    assert found.values == {}
    assert as_toml_table([found]) == {"rules": {}}


def test_what_was_chosen_can_stand_in_a_file(grid):
    _, found = go(grid, "hinge", lambda values: 1.0)
    on = as_toml_table([found])["rules"]["hinge"]["on"]["digits"]
    assert on["rule"]["alpha"] == found.values["rule.alpha"]
