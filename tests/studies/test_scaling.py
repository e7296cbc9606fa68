"""A grid becomes runs, arrays and rows; the queueing model against hand-worked numbers, the simulation and itself."""

import csv
import json
from math import factorial, sqrt
from pathlib import Path

import numpy as np
import pytest

from asyncfeded.config import Config
from asyncfeded.plots.scaling import plot_scaling
from asyncfeded.store.record import UPDATE
from asyncfeded.studies import scaling
from asyncfeded.studies.scaling import prediction, servers, slurm, table
from asyncfeded.studies.scaling.grid import expand, load_scaling_grid
from asyncfeded.studies.scaling.queueing import Times, bound, fit, mean_values, saturation
from asyncfeded.studies.scaling.simulation import simulate
from conftest import run_asyncfeded, tables

GRID = """
clients = [1, 2, 4]
rounds = 5
samples = 80
round_s = 0.4
target = 0.5
predict = [16]
caption = "Small."

[run]
task = {name = "synthetic", model = "mlp"}
training.epochs = 1

[models.small]
run.task.hidden = 4

[rules.asyncfeded]
run.rule = {name = "asyncfeded", kappa = 0.0}
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "grid.toml").write_text(GRID)
    return tmp_path / "grid.toml"


# --- the grid


def config_of(path, kind, clients):
    return next(run.config for run in expand(load_scaling_grid(path)) if (run.scaling, run.clients) == (kind, clients))


def test_strong_scaling_divides_data_and_pace(path):
    """80 samples are 4 devices of 20: 4 clients have one each."""
    config = config_of(path, "strong", 4)
    assert (config.clients, config.limits.updates) == (4, 20)
    assert config.task["sizes_given"] == [20] * 4
    assert config.heterogeneity.round_s == (0.1,)


def test_weak_scaling_multiplies_the_data_and_keeps_the_pace(path):
    config = config_of(path, "weak", 4)
    assert (config.clients, config.limits.updates) == (4, 20)
    assert config.task["sizes_given"] == [20] * 16
    assert config.heterogeneity.round_s == (0.4,)


def test_the_fewest_clients_are_the_same_run_in_both(path):
    runs = list(expand(load_scaling_grid(path)))
    assert len(runs) == 6
    assert len({run.name for run in runs}) == 5
    assert config_of(path, "strong", 1) == config_of(path, "weak", 1)


def test_nodes_follow_from_the_ranks_on_each(path):
    """2, 3 and 5 ranks, two on a node."""
    runs = list(expand(load_scaling_grid(path, ["ranks_per_node=[2]", 'scaling=["weak"]'])))
    assert [(run.ranks, run.nodes) for run in runs] == [(2, 1), (3, 2), (5, 3)]
    assert {run.nodes for run in expand(load_scaling_grid(path))} == {1}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("clients=[2,1]", r"clients: expected rising numbers"),
        ("samples=7", "samples = 7: expected at least 8, one to train and one to test for each of 4 devices"),
        ("samples=0", "weak scaling needs `samples`"),
        ("fit=[1,3]", r"fit names \[3\] clients, which no run has; expected some of \[1, 2, 4\]"),
        ("run.clock=virtual", "run.clock = virtual: a scaling study measures wall time"),
        ("models.small.run.task.hiden=3", "unknown key hiden; did you mean hidden"),
        ("rules.asyncfeded.run.rule.kapa=0", "unknown key kapa; did you mean kappa"),
        ('scaling=["week"]', "scaling"),
        ("wanted.mine.params=9", "wanted.mine"),
    ],
)
def test_a_wrong_grid_is_refused_before_any_run(path, override, words):
    with pytest.raises(ValueError, match=words):
        load_scaling_grid(path, [override])


# --- rows


@pytest.fixture
def finish(tmp_path, monkeypatch):
    """Makes a run look done: (run, rows of updates as dicts, evaluations, figures of its result)."""
    records = {}
    monkeypatch.setattr(table.record, "read_record", lambda run_dir: records[run_dir.name])

    def done(run, updates, evaluations=((0.0, 0, 0.1, 2.3),), **figures):
        rows = np.zeros(len(updates), UPDATE)
        rows["accepted"] = True
        for row, fields in zip(rows, updates, strict=True):
            for name, value in fields.items():
                row[name] = value
        records[run.name] = tables(rows, evaluations)
        folder = tmp_path / "runs" / run.name
        folder.mkdir(parents=True, exist_ok=True)
        result = {"params": 9, "updates": len(rows), "server_busy": 0.2, "wall_s": 10.0, "peak_rss_bytes": 10**8, "hosts": 1}
        (folder / "result.json").write_text(json.dumps(result | {"cores": 0.5} | figures))

    return done


def test_a_row_measures_from_the_first_update_of_the_last_client_on(path, tmp_path, finish):
    """Client 0 at 1, 3 and 5 s, client 1 at 2 and 5.5 s: 3 updates in the 3.5 s after 2 s. Cycles 2, 2 and 3.5 s, of which
    clients waited 0.5, 0.5 and 1 s. Accuracy 0.5 after 2 s."""
    run = next(run for run in expand(load_scaling_grid(path)) if run.clients == 2)
    come = [(1, 0, 9.0, 0), (2, 1, 9.0, 9), (3, 0, 0.5, 0), (5, 0, 0.5, 1), (5.5, 1, 1.0, 2)]
    names = ("time_s", "client", "wait_s", "queue")
    rows = [dict(zip(names, values, strict=True)) | {"samples": 7, "bytes": 70, "gamma": values[0]} for values in come]
    finish(run, rows, [(1.0, 1, 0.4, 1.0), (2.0, 2, 0.6, 1.0), (3.0, 3, 0.7, 1.0)])
    row = table.measure(run, tmp_path / "runs" / run.name, 0.5)
    assert row.updates_per_s == pytest.approx(3 / 3.5)
    assert row.samples_per_s == pytest.approx(21 / 3.5)
    assert row.bytes_per_s == pytest.approx(210 / 3.5)
    assert row.client_wait == pytest.approx(2 / 7.5)
    assert row.queue.tolist() == [1.0, 2.0]
    assert row.gamma.tolist() == [4.0, 5.0, 5.25]
    assert row.seconds_to_target == 2.0
    assert row.service_s == pytest.approx(0.2 * 10 / 5)
    assert sorted(row.think_s.tolist()) == pytest.approx([1.5, 1.5, 2.5])


def steady(clients, period_s, samples, rounds=5):
    """Rows of clients that come in turns."""
    times = [(k * period_s + i * period_s / clients, i) for k in range(1, rounds + 1) for i in range(clients)]
    return [{"time_s": t, "client": i, "wait_s": 0.1, "samples": samples, "tau": clients - 1} for t, i in times]


@pytest.fixture
def done(path, tmp_path, finish):
    """Strong: 1, 2 and 4 clients need 1, 0.5 and 0.5 s for a round of 8, 4 and 2 samples; weak: 2 clients 1 s, 8 samples."""
    grid = load_scaling_grid(path)
    runs = list(expand(grid))
    periods = {("strong", 1): 1.0, ("strong", 2): 0.5, ("strong", 4): 0.5, ("weak", 2): 1.0}
    for run in runs:
        if (run.scaling, run.clients) in periods:
            samples = 8 // run.clients if run.scaling == "strong" else 8
            finish(run, steady(run.clients, periods[run.scaling, run.clients], samples))
    return grid, runs, table.collect(grid, runs, tmp_path)


def test_speed_up_is_of_samples_and_efficiency_of_clients(done):
    """Samples per second: 8, 16 and 16; weak 16."""
    grid, _, rows = done
    found = {(row.run.scaling, row.run.clients): one for row, one in zip(rows, table.compare(grid, rows), strict=True)}
    assert found["strong", 1] == pytest.approx((1.0, 1.0))
    assert found["strong", 2] == pytest.approx((2.0, 1.0))
    assert found["strong", 4] == pytest.approx((2.0, 0.5))
    assert found["weak", 2] == pytest.approx((2.0, 1.0))
    without = [row for row in rows if row.run.clients > 1]
    assert np.isnan(table.compare(grid, without)).all()


def test_tables_have_every_run_and_medians(done, tmp_path):
    grid, _, rows = done
    text = table.to_markdown(grid, rows)
    assert text.startswith("Small.\n")
    assert "### strong scaling, small (9 parameters), asyncfeded" in text
    assert "| 4 | 1 | 1 of 1 | 8 | 2.00 | 50% | 20.0% | 20.0% | 0.00, 0 | 0.00 (0.00 to 0.00) | 3 (3 to 3) |" in text
    assert "never |" in text
    table.write_csv(grid, rows, tmp_path)
    lines = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [line["outcome"] for line in lines] == ["done"] * 5 + ["not done"]
    assert (lines[5]["clients"], lines[5]["updates_per_s"]) == ("4", "")
    assert (lines[2]["clients"], lines[2]["efficiency"], lines[2]["seconds_to_target"]) == ("4", "0.5", "")


def test_without_the_fewest_clients_there_is_no_speed_up_and_the_table_says_why(done, tmp_path):
    grid, _, rows = done
    without = [row for row in rows if row.run.clients > 1]
    text = table.to_markdown(grid, without)
    assert "| 1 |  | 0 of 1 |  |  |  |" in text
    assert "| 2 | 1 | 1 of 1 | 4 |  |  | 20.0% |" in text
    assert "nan" not in text
    assert text.count("There is no speed-up: no run of 1 clients is done, with which it would compare.") == 2
    assert len(plot_scaling(grid, without, table.compare(grid, without), [], tmp_path)) == 3


def test_gathering_names_what_is_missing(done, path, tmp_path, capsys):
    grid, runs, _ = done
    said = []
    study = scaling.Study(path, [], tmp_path, said.append)
    report = study.report(predict=False)
    assert said == [f"missing: {runs[5].name} (--only 5)"]
    assert len(report.rows) == 5
    assert "### weak scaling" in capsys.readouterr().out
    assert (tmp_path / "table.csv").exists()
    with pytest.raises(ValueError, match="none of the 5 runs of the grid is done"):
        scaling.Study(path, [], tmp_path / "elsewhere", said.append).report(predict=False)
    assert grid == study.grid


def test_a_run_that_needs_nodes_is_not_started_on_one(path, tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_NUM_NODES", raising=False)
    study = scaling.Study(path, ["ranks_per_node=[2]"], tmp_path, print)
    with pytest.raises(ValueError, match="needs 2 nodes of 2 ranks, and here is 1; submit with --slurm"):
        study.execute(None)
    with pytest.raises(ValueError, match="--only 9: the grid makes 6 runs, 0 to 5"):
        study.execute(9)


# --- submitting


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """An sbatch that writes down how it was called; gives the lines."""
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\n[ "$2" = --bad ] && echo no >&2 && exit 1\necho "$@" >> {tmp_path}/called\necho "7;here"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "scaling.sbatch").write_text("")
    return lambda: (tmp_path / "called").read_text().splitlines()


def test_there_is_an_array_for_each_number_of_nodes_of_what_is_not_done(path, sbatch, finish):
    """Runs 0 to 2 are strong with 1, 2 and 4 clients, 3 to 5 weak; 3 is 0, and 4 is done."""
    runs = list(expand(load_scaling_grid(path, ["ranks_per_node=[2]"])))
    finish(runs[4], steady(2, 1.0, 8))
    said = slurm.submit(runs, Path("grid.toml"), Path(), ["ranks_per_node=[2]"], "--partition=a --time=5")
    rest = "slurm/scaling.sbatch grid.toml . ranks_per_node=[2]"
    assert sbatch() == [
        f"--parsable --partition=a --time=5 --nodes=1 --ntasks-per-node=2 --array=0 {rest}",
        f"--parsable --partition=a --time=5 --nodes=2 --ntasks-per-node=2 --array=1 {rest}",
        f"--parsable --partition=a --time=5 --nodes=3 --ntasks-per-node=2 --array=2,5 {rest}",
    ]
    assert said[2] == "job 7: 2 runs on 3 node(s) with 2 ranks each"


def test_what_sbatch_refuses_is_told(path, sbatch, monkeypatch, tmp_path):
    runs = list(expand(load_scaling_grid(path)))
    with pytest.raises(ValueError, match=r"sbatch --parsable --bad --nodes=1 .* failed: no"):
        slurm.submit(runs, path, tmp_path, [], "--bad")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ValueError, match="cannot run sbatch: No such file or directory; --slurm is for a machine with Slurm"
    ):
        slurm.submit(runs, path, tmp_path, [], "")
    monkeypatch.chdir("/")
    with pytest.raises(ValueError, match=r"slurm/scaling\.sbatch: no such file in /; submit from the folder"):
        slurm.submit(runs, path, tmp_path, [], "")


# --- the queueing model


def times(service_s=1.0, latency_s=0.0, think_s=(9.0,), divided=0):
    return Times(service_s, latency_s, np.array(think_s), divided)


def test_mean_values_by_hand():
    """S = 1, Z = 9. One client: X = 1/10, Q = 0.1. Two: R = 1.1, X = 2/10.1. Three: Q = 2.2/10.1, X = 3/(10 + 2.2/10.1)."""
    assert mean_values(times(), 1) == pytest.approx((0.1, 0.1))
    assert mean_values(times(), 2) == pytest.approx((2 / 10.1, 1.1 / 10.1))
    assert mean_values(times(), 3).updates_per_s == pytest.approx(3 / (10 + 2.2 / 10.1))


@pytest.mark.parametrize("clients", [2, 8, 30])
def test_mean_values_are_those_of_the_machine_repairman(clients):
    """Birth and death: p0 = 1 / sum over k of N! / (N-k)! (S/Z)^k, and X = (1 - p0) / S."""
    p0 = 1 / sum(factorial(clients) / factorial(clients - k) * (0.5 / 8) ** k for k in range(clients + 1))
    found = mean_values(times(0.5, 2.0, [6.0]), clients)  # latency delays as thinking does
    assert found.updates_per_s == pytest.approx((1 - p0) / 0.5)


def test_saturation_is_where_the_bounds_meet():
    assert saturation(times()) == pytest.approx(10)
    assert saturation(times(0.5, 1.5)) == pytest.approx((9 + 1.5 + 0.5) / 0.5)
    assert bound(times(), 9) == pytest.approx(0.9)
    assert bound(times(), 10) == bound(times(), 50) == pytest.approx(1.0)


def test_saturation_in_strong_scaling_solves_a_square():
    """N = z / N + 1 with z = 6 is N^2 - N - 6 = 0: 3. The rounds were measured with 2 clients, so they take 3 s there."""
    assert saturation(times(think_s=[3.0], divided=2)) == pytest.approx(3)
    assert saturation(times(1.0, 0.0, [8.0], 1)) == pytest.approx((1 + sqrt(33)) / 2)
    assert bound(times(think_s=[3.0], divided=2), 3) == pytest.approx(1.0)


def test_times_are_fitted_from_rows(done):
    """Cycles of 1 and 0.5 s, 0.1 s of them waiting; S = 0.2 x 10 s over 5 and 10 updates: 0.4 and 0.2 s."""
    _, _, rows = done
    fitted = fit([row for row in rows if row.run.line[0] == "strong" and row.run.clients < 4], 1)
    assert fitted.service_s == pytest.approx(0.3)
    assert fitted.latency_s == 0.0
    assert sorted(set(np.round(fitted.think_s, 9))) == pytest.approx([0.8, 0.9])  # (0.5 - 0.1) x 2 and 1 - 0.1
    assert fitted.think(4).mean() == pytest.approx(fitted.think_s.mean() / 4)
    weak = fit([row for row in rows if row.run.line[0] == "weak"], 1)
    assert weak.think(4).tolist() == weak.think_s.tolist()


# --- the simulation


CONFIG = Config(limits={"updates": 1}, rule={"name": "asyncfeded", "kappa": 0.0}, seed=3)


def test_two_clients_on_constant_times():
    """Thinking 4 s, service 1 s: both are back after 5 s, one after the other, and never wait for each other again."""
    found = simulate(times(think_s=[4.0]), CONFIG, 2)
    assert found.updates_per_s == pytest.approx(2 / 5)
    assert found.client_wait == pytest.approx(1 / 5)
    assert found.queue == 0
    assert found.tau.tolist() == [1, 1, 1]


def test_a_saturated_server_on_constant_times():
    """10 clients, thinking 4 s, service 1 s: a turn takes 10 s, 6 of them at the server. Who came 5 to 9 s ago is back."""
    found = simulate(times(think_s=[4.0]), CONFIG, 10)
    assert found.updates_per_s == pytest.approx(1.0)
    assert found.client_wait == pytest.approx(0.6)
    assert found.queue == 5
    assert found.tau.tolist() == [9, 9, 9]
    assert found.gamma[1] > simulate(times(think_s=[4.0]), CONFIG, 2).gamma[1] > 0


@pytest.mark.parametrize("clients", [4, 12, 40])
def test_with_drawn_service_times_it_is_what_mean_value_analysis_says(clients):
    """2,000 updates with exponential times: a standard error of 2 % where these limit the rate."""
    think_s = np.random.default_rng(5).exponential(8.0, 20_000)
    drawn = times(1.0, 1.0, think_s)
    found, expected = simulate(drawn, CONFIG, clients, exponential=True), mean_values(drawn, clients)
    assert found.updates_per_s == pytest.approx(expected.updates_per_s, rel=0.07)
    assert found.client_wait == pytest.approx(expected.client_wait, abs=0.05)


def test_a_service_that_is_always_the_same_keeps_nobody_waiting_longer_than_a_drawn_one():
    drawn = times(think_s=np.random.default_rng(5).exponential(9.0, 20_000))
    assert simulate(drawn, CONFIG, 10).client_wait < mean_values(drawn, 10).client_wait


def test_latency_delays_an_update_and_not_the_server():
    found = simulate(times(1.0, 5.0, [4.0]), CONFIG, 10)
    assert found.updates_per_s == pytest.approx(1.0)
    assert found.client_wait == pytest.approx(0.6)


def test_a_rule_that_makes_clients_wait_for_each_other():
    """FedAvg of all four: the slowest is back after 9 s, three services later it is its turn, and all wait for it."""
    config = Config(limits={"updates": 1}, rule={"name": "fedavg"}, seed=3)
    found = simulate(times(think_s=[9.0]), config, 4)
    assert found.updates_per_s == pytest.approx(4 / 13, rel=0.01)
    assert found.client_wait == pytest.approx(4 / 13, rel=0.01)


def test_rounds_of_fewer_epochs_are_shorter():
    """K falls from 2 to 1 while gamma is above gamma_bar = 0: 4 s instead of 8."""
    config = Config(limits={"updates": 1}, rule={"name": "asyncfeded", "kappa": 9.0, "gamma_bar": 0.0}, seed=3)
    assert simulate(times(think_s=[8.0]), config, 2).updates_per_s == pytest.approx(2 / 5)


# --- predictions and figures


def test_predictions_are_tested_on_the_runs_that_were_not_used(done, tmp_path):
    grid, _, rows = done
    said = []
    predictions = prediction.predict(grid, rows, said.append)
    assert [one.line[0] for one in predictions] == ["strong", "weak"]
    points = {point.clients: point for point in predictions[0].points}
    assert sorted(points) == [1, 2, 4, 16]
    assert [points[n].fitted for n in sorted(points)] == [True, True, False, False]
    assert points[4].measured.updates_per_s == pytest.approx(8)
    assert points[4].error(6.0) == pytest.approx(-0.25)
    assert points[16].measured is None
    text = prediction.to_markdown(predictions)
    error = points[4].analysis.updates_per_s / 8 - 1
    assert f"Error of the updates/s on runs that were not used, mean value analysis: {error:+.1%} at 4." in text
    prediction.write_csv(predictions, tmp_path / "prediction.csv")
    lines = list(csv.DictReader((tmp_path / "prediction.csv").read_text().splitlines()))
    assert [line["clients"] for line in lines] == ["1", "2", "4", "16"] * 2
    assert (lines[3]["measured_updates_per_s"], lines[2]["fitted"]) == ("", "False")


def test_a_line_without_the_runs_to_fit_on_is_not_predicted(done):
    grid, _, rows = done
    said = []
    some = [row for row in rows if row.run.clients != 2]
    assert prediction.predict(grid, some, said.append) == []
    assert said[0].endswith("not predicted, runs of 1 and 2 clients are missing")


def test_server_ranks_are_told_for_what_is_wanted(done, path, tmp_path):
    """With one client: 0.4 s of the processor for 9 parameters, which are one chunk. 3.5 clients of 1 s saturate it."""
    keys = {"few": "{params = 9, clients = 3, round_s = 1}", "many": "{params = 9, clients = 4, round_s = 1}"}
    grid = load_scaling_grid(path, [f"wanted.{label}={table}" for label, table in keys.items()])
    answers = servers.answer(grid, done[2])
    assert [one[:2] + one[3:4] for one in answers] == [("few", "asyncfeded", 1), ("many", "asyncfeded", 0)]
    text = servers.to_markdown(answers)
    assert "| few | asyncfeded | 9 | 3 | 1 |  | **1** | 3.5 | 3.5 |" in text
    assert "**none suffices**" in text
    assert text.count("| its processor |") == 2
    servers.write_csv(answers, tmp_path / "servers.csv")
    lines = list(csv.DictReader((tmp_path / "servers.csv").read_text().splitlines()))
    assert [(line["servers"], line["saturation_one"]) for line in lines] == [("1", "3.5"), ("0", "3.5")]


@pytest.mark.parametrize("paced", [True, False])
def test_figures_are_drawn_from_what_is_there(done, tmp_path, paced):
    grid, _, rows = done
    grid = grid if paced else grid.model_copy(update={"round_s": 0.0})
    rows = [row._replace(gamma=np.full(3, np.nan)) if row.run.clients == 4 else row for row in rows]
    predictions = prediction.predict(grid, rows, print)
    pictures = plot_scaling(grid, rows, table.compare(grid, rows), predictions, tmp_path)
    assert [path.name for path in pictures] == ["speedup.png", "server.png", "staleness.png", "prediction.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


# --- for real


@pytest.mark.timeout(900)
def test_a_study_runs_loses_one_run_and_is_gathered(own_mpi, path, tmp_path):
    text = path.read_text().replace("clients = [1, 2, 4]", 'clients = [1, 2]\nscaling = ["weak"]').replace("0.4", "0.05")
    path.write_text(text + "[models.broken]\nrun.training.learning_rate = 1e20\n")
    command = ("scale", path, "--output", tmp_path / "out", "--predict")
    first = run_asyncfeded(*command, cwd=tmp_path, env=own_mpi.env, timeout=600)
    assert first.status == 2, str(first)
    assert "4 runs, 0 of them done already; 1 at a time with 2 to 3 ranks" in first.stderr
    assert "2 of the runs failed: broken-asyncfeded-c1-" in first.stderr
    assert first.stderr.count("missing: broken-asyncfeded-c") == 2
    assert "### weak scaling, small (294 parameters), asyncfeded" in first.stdout
    assert "### Predicted: weak scaling, small" in first.stdout
    assert sum(line.endswith(".png") for line in first.stdout.splitlines()) == 4
    lines = csv.DictReader((tmp_path / "out" / "table.csv").read_text().splitlines())
    line = next(line for line in lines if line["clients"] == "2")
    assert int(line["updates"]) == 10
    assert 0 < float(line["updates_per_s"]) <= 2 / 0.05
    assert float(line["think_s"]) >= 0.049
    assert 0 < float(line["server_busy"]) < 1
    assert int(line["peak_rss_bytes"]) > 10_000_000
    gathered = run_asyncfeded(*command, "--gather", cwd=tmp_path, env=own_mpi.env, timeout=300)
    assert gathered.status == 0, str(gathered)
    assert gathered.stdout == first.stdout
