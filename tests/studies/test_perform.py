"""Rows are taken from runs that are done, and nothing is done twice. That runs are started is tested in test_study.py."""

import pytest

from asyncfeded.studies import jobs, study
from asyncfeded.studies.perform import Performance
from studies.grids import finish


@pytest.fixture
def grid(path):
    return study.load_study_grid(path, ["error_probabilities=[0.0]"])


def perform(grid, out, hours=1.0):
    return Performance(grid, out, 2, 1, hours, lambda _: None).perform()


def test_runs_that_are_done_become_rows_which_outlive_them(grid, tmp_path):
    for run in study.expand(grid, "given", {}):
        finish(run, tmp_path, [0.1, 0.6])
    done = perform(grid.model_copy(update={"keep": "rows"}), tmp_path)
    assert (len(done.rows), done.missing, done.refused) == (4, 0, [])
    assert not list((tmp_path / "runs").iterdir())
    assert next(iter(done.rows.values())).test_samples == 359  # a fifth of the digits of scikit-learn
    assert perform(grid, tmp_path).missing == 0


def test_no_run_begins_when_the_time_is_over(grid, tmp_path):
    done = perform(grid, tmp_path, hours=0.0)
    assert (len(done.runs["given"]), done.missing) == (4, 4)
    assert not list((tmp_path / "runs").iterdir())


def test_a_run_that_has_ended_itself_counts_and_one_that_was_killed_is_tried_again(grid, tmp_path, monkeypatch):
    def execute(planned, folder, side_by_side, say, together, until_s, tell):
        for job in planned:
            tell(job, f"{jobs.ENDED_ITSELF}, see LOG" if "hinge" in job.name else "failed with status -9, see LOG")

    monkeypatch.setattr(jobs, "execute", execute)
    done = perform(grid, tmp_path)
    assert {row.outcome for row in done.rows.values()} == {"failed"}
    assert (len(done.rows), len(done.refused), done.missing) == (2, 2, 2)
