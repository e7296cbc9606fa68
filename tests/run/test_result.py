"""The figures of a finished run, from a record and a server that are made up."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from asyncfeded.run import result
from asyncfeded.store.record import UPDATE, Record, read_record
from asyncfeded.training.evaluation import Score
from asyncfeded.training.heterogeneity import PROFILE
from asyncfeded.training.server import Outcome
from conftest import METRICS, num_calls, places, tables

OUTCOME = Outcome("10 s have passed", 10.0, 8.0, Score(3, {"accuracy": 0.75, "loss": 0.5}), 2, False)


@pytest.fixture
def run_dir(tmp_path):
    """A run of two clients: gamma 1, 2 and infinite, and an update that was refused."""
    with Record(tmp_path / "record.h5", "", places("here"), np.zeros(2, PROFILE), METRICS) as book:
        for client, gamma, accepted in ((0, 1.0, True), (1, 2.0, True), (0, np.inf, True), (1, np.nan, False)):
            values = dict.fromkeys(UPDATE.names, 1) | {"client": client, "gamma": gamma, "accepted": accepted}
            book.updates.append(tuple(values[name] for name in UPDATE.names))
    return tmp_path


def figures(run_dir, outcome=OUTCOME, tests=(), **before):
    state = SimpleNamespace(
        updates=3,
        busy_s=0.5,
        evaluating_s=0.8,
        compute_s=8.0,
        refused=1,
        **{"wall_before_s": 0.0, "workers_before_s": 0.0} | before,
    )
    server = SimpleNamespace(state=state, final=torch.zeros(2), settings=SimpleNamespace(metrics=METRICS))
    world = SimpleNamespace(size=3, hosts=["a", "a", "b"], cores=2.0)
    return result.figures(server, outcome, run_dir, read_record(run_dir).updates, tests, 4000, 2, 0.3, world, 2)


def test_figures_by_hand(run_dir):
    """Busy 0.5 s and receiving 0.3 s of 8 s; two workers trained for 8 of their 16 s."""
    got = figures(run_dir)
    assert (got["updates_per_s"], got["gamma_median"]) == (0.3, 1.5)
    assert (got["server_busy"], got["server_evaluating"], got["workers_busy"]) == (0.1, 0.1, 0.5)
    assert (got["hosts"], got["cores"], got["params"]) == (2, 2.0, 2)
    assert (got["refused"], got["discarded"]) == (1, 2)
    assert (got["metric"], got["metrics"]) == ("accuracy", {"accuracy": 0.75, "loss": 0.5})


def test_a_score_that_is_not_finite_is_null(run_dir):
    outcome = OUTCOME._replace(score=Score(3, {"accuracy": float("nan"), "loss": float("inf")}))
    shown = json.loads(json.dumps(figures(run_dir, outcome), allow_nan=False))
    assert shown["metrics"] == {"accuracy": None, "loss": None}


def test_the_last_test_of_each_client_counts():
    """Accuracy 0.9 and 0.5 at the end, and one that is not known; the loss of the third client alone is 4."""
    rows = [(0, 0.1, 1.0), (1, 0.5, 2.0), (2, math.nan, 4.0), (0, 0.9, 3.0)]
    tests = tables(client_evaluations=[(0.0, 0, client, 0, *values) for client, *values in rows]).client_evaluations
    accuracy, loss = result.over_clients(tests, METRICS).values()
    assert accuracy == {"mean": 0.7, "spread": 0.2, "worst": 0.5}
    assert loss == {"mean": 3.0, "spread": round(math.sqrt(2 / 3), 6), "worst": 4.0}


def test_the_workers_of_a_resumed_run_are_those_of_all_its_lives(run_dir):
    """Six workers for 2 s and two for 6 s: they trained for 8 of 24 s."""
    assert figures(run_dir, wall_before_s=2.0, workers_before_s=12.0)["workers_busy"] == round(8 / 24, 6)


def test_a_run_that_ended_at_its_first_instant_has_no_rate(run_dir):
    outcome = OUTCOME._replace(seconds=0.0)
    assert figures(run_dir, outcome)["updates_per_s"] is None


def test_a_result_that_cannot_be_read_is_named(tmp_path):
    assert result.updates_at_end(tmp_path) == 0
    for text in ("", "{}", "[]", '{"updates": null}', "\xff"):
        (tmp_path / "result.json").write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=r"result\.json: "):
            result.updates_at_end(tmp_path)


def test_the_last_line_is_the_figures_as_json(run_dir, capsys):
    shown = figures(run_dir)
    result.show(shown, read_record(run_dir).updates, 2)
    said = capsys.readouterr().out.splitlines()
    assert json.loads(said[-1]) == shown
    assert said[1].split()[:3] == ["0", "2", "66.7%"]  # of the updates that were merged


def table(folder, rows, num_clients, capsys):
    """Cells of each line of the table for a record of (client, gamma, accepted)."""
    with Record(folder / "record.h5", "", places("here"), np.zeros(num_clients, PROFILE), METRICS) as book:
        for client, gamma, accepted in rows:
            values = dict.fromkeys(UPDATE.names, 1) | {"client": client, "gamma": gamma, "accepted": accepted}
            book.updates.append(tuple(values[name] for name in UPDATE.names))
    result.show({"x": 1}, read_record(folder).updates, num_clients)
    lines = capsys.readouterr().out.split("(K, gamma")[0].splitlines()[1:]
    return [line.split() for line in lines]


def test_a_client_without_an_update_has_a_line(tmp_path, capsys):
    lines = table(tmp_path, [(0, 2.0, True), (2, 1.0, False)], 3, capsys)
    assert lines == [["0", "1", "100.0%", "1", "2", "1", "1", "1"], ["1", "0", "0.0%"], ["2", "0", "0.0%"]]


def test_a_run_without_a_merged_update_has_its_table(tmp_path, capsys):
    assert table(tmp_path, [(0, np.nan, False)], 1, capsys) == [["0", "0", "0.0%"]]


def test_of_many_clients_the_table_has_those_with_the_most_and_the_fewest_updates_and_one_line_of_the_others(
    tmp_path, capsys
):
    """Client i of 30 has i updates, all of gamma i: 435. Those between have 145 in all, of median gamma 15."""
    lines = table(tmp_path, [(client, client, True) for client in range(30) for _ in range(client)], 30, capsys)
    assert [line[0] for line in lines] == [str(i) for i in (*range(29, 19, -1), *range(9, -1, -1), 10)]
    assert lines[0][1:5] == ["29", "6.7%", "1", "29"]
    assert lines[-1][1:6] == ["others", "145", "33.3%", "1", "15"]


def test_the_table_takes_the_calls_of_its_lines(tmp_path, capsys):
    """Many clients and many updates: the same lines, so about the same calls."""

    def show(clients, each):
        folder = tmp_path / str(clients)
        folder.mkdir()
        table(folder, [(client, 1.0, True) for client in range(clients) for _ in range(each)], clients, capsys)
        updates = read_record(folder).updates
        return num_calls(lambda: result.show({"x": 1}, updates, clients))

    show(29, 1)
    assert show(300, 10) < 2 * show(30, 2)
