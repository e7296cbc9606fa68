"""The figures of a finished run, from a record and a server that are made up."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from asyncfeded.run import result
from asyncfeded.store.record import UPDATE, Record
from asyncfeded.training.evaluation import Score
from asyncfeded.training.heterogeneity import PROFILE
from asyncfeded.training.server import Outcome
from conftest import places

OUTCOME = Outcome("10 s have passed", 10.0, 8.0, Score(3, 0.75, 0.5), 2, False)


@pytest.fixture
def run_dir(tmp_path):
    """A run of two clients: gamma 1, 2 and infinite, and an update that was refused."""
    with Record(tmp_path / "record.h5", "", places("here"), np.zeros(2, PROFILE)) as book:
        for client, gamma, accepted in ((0, 1.0, True), (1, 2.0, True), (0, np.inf, True), (1, np.nan, False)):
            values = dict.fromkeys(UPDATE.names, 1) | {"client": client, "gamma": gamma, "accepted": accepted}
            book.updates.append(tuple(values[name] for name in UPDATE.names))
    return tmp_path


def figures(run_dir, outcome=OUTCOME):
    state = SimpleNamespace(
        updates=3,
        busy_s=0.5,
        evaluating_s=0.8,
        compute_s=8.0,
        refused=1,
        model=SimpleNamespace(x=torch.zeros(2), layout=SimpleNamespace(num_params=2)),
    )
    server = SimpleNamespace(state=state)
    world = SimpleNamespace(size=3, hosts=["a", "a", "b"], cores=2.0)
    return result.figures(server, outcome, run_dir, 4000, 0.3, world)


def test_figures_by_hand(run_dir):
    """Busy 0.5 s and receiving 0.3 s of 8 s; two workers trained for 8 of their 16 s."""
    got = figures(run_dir)
    assert (got["updates_per_s"], got["gamma_median"]) == (0.3, 1.5)
    assert (got["server_busy"], got["server_evaluating"], got["workers_busy"]) == (0.1, 0.1, 0.5)
    assert (got["hosts"], got["cores"], got["params"]) == (2, 2.0, 2)
    assert (got["refused"], got["discarded"], got["accuracy"]) == (1, 2, 0.75)


def test_a_score_that_is_not_finite_is_null(run_dir):
    outcome = OUTCOME._replace(score=Score(3, float("nan"), float("inf")))
    shown = json.loads(json.dumps(figures(run_dir, outcome), allow_nan=False))
    assert (shown["accuracy"], shown["loss"]) == (None, None)


def test_the_last_line_is_the_figures_as_json(run_dir, capsys):
    shown = figures(run_dir)
    result.show(shown, run_dir)
    said = capsys.readouterr().out.splitlines()
    assert json.loads(said[-1]) == shown
    assert said[1].split()[:3] == ["0", "2", "66.7%"]  # of the updates that were merged
