"""What stays of a run, written and read again."""

import numpy as np
import pytest

from asyncfeded.metric import Metric, Metrics
from asyncfeded.store import record
from asyncfeded.studies import rows, study
from conftest import METRICS
from studies.grids import finish

PERPLEXITY = Metrics({"perplexity": Metric("min", "characters"), "accuracy": Metric("max")}, "perplexity")


def made(path, tmp_path, curve, metrics=METRICS):
    run = next(study.expand(study.load_study_grid(path), "given", {}))
    finish(run, tmp_path, curve, metrics=metrics)
    return run, rows.of_run(run, tmp_path / "runs" / run.name, 100.0)


def test_a_row_has_the_best_and_last_value_and_the_time_to_any_target(path, tmp_path):
    _, row = made(path, tmp_path, [0.1, 0.6, 0.95, 0.8])
    assert (row.best, row.final) == (0.95, 0.8)
    assert [row.seconds_to(target) for target in (0.05, 0.5, 0.9, 0.96)] == [0.0, 1.0, 2.0, np.inf]
    assert row.mean == pytest.approx((0.1 + 0.6 + 0.95 + 0.8) / 4)
    assert row.gamma.tolist() == [2.25, 4.5, 6.75]


def test_a_row_says_which_state_of_the_program_made_it(path, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "provenance", lambda: {"asyncfeded": "0.2.0", "commit": "0123456789abcdef+"})
    run, row = made(path, tmp_path, [0.1])
    assert row.program == rows.of_failure(run).program == "0.2.0 0123456789ab+"
    book = rows.Book(tmp_path / "rows.csv")
    book.add(run, row)
    assert rows.Book(tmp_path / "rows.csv").rows[run.name].program == row.program


def test_a_metric_whose_smallest_value_is_the_best(path, tmp_path):
    _, row = made(path, tmp_path, [30.0, 10.0, 3.0, 4.0], PERPLEXITY)
    assert (row.best, row.final) == (3.0, 4.0)
    assert [row.seconds_to(target) for target in (10.0, 5.0, 2.0)] == [1.0, 2.0, np.inf]


def test_rows_are_read_as_they_were_written(path, tmp_path):
    """A failed run too; a curve is kept at 61 points at most, its first and last among them."""
    run, row = made(path, tmp_path, np.linspace(0.0, 0.9, 200))
    failed = list(study.expand(study.load_study_grid(path), "given", {}))[1]
    book = rows.Book(tmp_path / "rows.csv")
    book.add(run, row)
    book.add(failed, rows.of_failure(failed))
    again = rows.Book(tmp_path / "rows.csv").rows
    read = again[run.name]
    assert read[:9] == row[:9]
    assert read[9:15] == pytest.approx(row[9:15], rel=1e-5)
    assert (read.gamma.tolist(), read.curve.shape) == (row.gamma.tolist(), (2, 61))
    assert read.bests == pytest.approx(row.bests, rel=1e-8)
    assert read.bests.shape == (2, 200)  # all of them
    assert read.curve[:, [0, -1]].tolist() == [[0.0, 199.0], [0.0, 0.9]]
    assert again[failed.name].outcome == "failed"


def test_of_a_trial_its_value_is_kept_and_no_curve(path, tmp_path):
    trial = study.tuning_run(study.load_study_grid(path, ['settings=["tuned"]']), "digits", "hinge", {"rule.alpha": 0.2}, 0)
    finish(trial, tmp_path, [0.1, 0.5])
    row = rows.of_run(trial, tmp_path / "runs" / trial.name, 100.0)
    rows.Book(tmp_path / "rows.csv").add(trial, row)
    read = rows.Book(tmp_path / "rows.csv").rows[trial.name]
    assert (read.mean, read.final, read.outcome, read.metric) == (0.3, 0.5, "done", row.metric)
    assert (read.curve.shape, read.bests.shape) == ((2, 0), (2, 0))


def test_a_damaged_row_is_named_with_what_to_do(path, tmp_path):
    run, row = made(path, tmp_path, [0.1])
    rows.Book(tmp_path / "rows.csv").add(run, row)
    text = (tmp_path / "rows.csv").read_text()
    (tmp_path / "rows.csv").write_text(text.replace(",max,", ",most,"))
    with pytest.raises(ValueError, match=r"rows.csv: line 2: better is 'most', expected max or min; remove the line"):
        rows.Book(tmp_path / "rows.csv")


def test_a_failed_run_has_the_worst_values_of_its_cell():
    done = rows.Row("t", "r", 0.1, 1, {}, "0.2.0", "done", "loss", Metric("min"), 1.0, 2.0, 3.0, bests=np.ones((2, 1)),
                    curve=np.array([[0.0, 1.0], [7.0, 2.0]]))  # fmt: skip
    failed = rows.Row("t", "s", 0.1, 1, {}, "0.2.0", "failed")
    filled = rows.worst_for_failures([failed, done])[0]
    assert (filled.best, filled.final, filled.mean, filled.seconds_to(0.5)) == (7.0, 7.0, 7.0, np.inf)
    assert rows.worst_for_failures([failed]) == []
