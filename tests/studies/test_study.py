"""A grid becomes runs, runs become rows, rows become tables; and one small study for real."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from asyncfeded.files.plain import read_toml
from asyncfeded.metric import Metric, Metrics
from asyncfeded.store.record import UPDATE, Record
from asyncfeded.studies import study
from asyncfeded.training.heterogeneity import PROFILE
from conftest import METRICS, Job, places, run_asyncfeded

GRID = """
error_probabilities = [0.0, 0.5]
seeds = [1, 2]
caption = "Small."

[run]
clock = "virtual"
clients = 3
limits.seconds = 4
evaluation.every_s = 1.0
heterogeneity.round_s = [1.0]
task.split = "even"

[tuning]
run.limits.seconds = 2

[tasks.digits]
run.task.name = "digits"
run.training.epochs = 1
targets = [0.5, 0.9]
tune."training.learning_rate" = [0.01, 0.1, 0.2]

[rules.asyncfeded]
run.rule.name = "asyncfeded"
tune."rule.lambda" = [0.5, 1.0]
[rules.asyncfeded.on.digits]
rule.lambda = 0.7

[rules.hinge]
run.rule = {name = "fedasync", staleness = "hinge"}
tune."rule.staleness" = ["hinge", "polynomial"]
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "grid.toml").write_text(GRID)
    return tmp_path / "grid.toml"


def changed(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return path


# --- the grid


def test_a_grid_is_every_combination_once(path):
    runs = list(study.expand(study.load_study_grid(path)))
    told = {(run.task, run.rule, run.error_probability, run.seed) for run in runs}
    assert len(runs) == len(told) == 1 * 2 * 2 * 2


def test_a_run_has_its_seed_its_errors_and_the_layers_of_the_grid(path):
    run = next(
        r
        for r in study.expand(study.load_study_grid(path))
        if (r.rule, r.seed, r.error_probability) == ("asyncfeded", 2, 0.5)
    )
    assert (run.config.seed, run.config.heterogeneity.error_probability) == (2, 0.5)
    assert (run.config.clock, run.config.task["split"], run.config.training.epochs) == ("virtual", "even", 1)
    assert run.config.rule["lambda"] == 0.7


def test_what_differs_on_a_task_is_not_in_the_way_of_tuning(path):
    tried = [run for run in study.expand_tuning(study.load_study_grid(path)) if run.rule == "asyncfeded"]
    assert sorted((run.config.rule["lambda"], run.config.training.learning_rate) for run in tried) == [
        (0.5, 0.01), (0.5, 0.1), (0.5, 0.2), (1.0, 0.01), (1.0, 0.1), (1.0, 0.2),
    ]  # fmt: skip
    assert {(run.config.seed, run.config.limits.seconds) for run in tried} == {(1000, 2)}


def test_every_rule_is_tuned_with_what_its_task_lists(path):
    tried = [run.values for run in study.expand_tuning(study.load_study_grid(path)) if run.rule == "hinge"]
    assert len(tried) == 3 * 2
    assert all(set(values) == {"training.learning_rate", "rule.staleness"} for values in tried)


def test_keys_given_beside_the_grid_replace_its_own(path):
    runs = list(
        study.expand(study.load_study_grid(path, ["tasks.digits.run.training.epochs=3", "seeds=[7]", "run.clients=2"]))
    )
    assert {(run.config.training.epochs, run.seed, run.config.clients) for run in runs} == {(3, 7, 2)}
    with pytest.raises(ValueError, match="expected key=value"):
        study.load_study_grid(path, ["seeds"])


def test_runs_of_other_configs_have_other_names(path):
    grid = study.load_study_grid(path)
    names = [run.name for run in (*study.expand(grid), *study.expand_tuning(grid))]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seeds = [1, 2]", "seeds = [1, 1000]", "tuning.seed = 1000 is among the seeds"),
        ("[rules.asyncfeded.on.digits]", "[rules.asyncfeded.on.digit]", "rules.asyncfeded.on names digit"),
        ('name = "asyncfeded"', 'name = "asyncfedd"', "unknown rule"),
        ("rule.lambda = 0.7", "rule.lamda = 0.7", "unknown key lamda; did you mean lambda"),
        ("limits.seconds = 4", "limits.second = 4", "unknown key limits.second; did you mean seconds"),
        ("clients = 3", "clients = 0", "clock = virtual needs clients"),
        ("targets = [0.5, 0.9]", "", "targets: required"),
    ],
)
def test_a_wrong_grid_is_refused_before_any_run(path, old, new, words):
    with pytest.raises(ValueError, match=words):
        study.load_study_grid(changed(path, old, new))


# --- rows and tables


def finish(run, out, curve, updates=10, metrics=METRICS):
    """The folder of a run that is done: values of the goal, which is the first metric, at 0, 1, 2, ... s."""
    folder = out / "runs" / run.name
    folder.mkdir(parents=True)
    with Record(folder / "record.h5", "", places("here"), np.zeros(1, PROFILE), metrics) as book:
        for i, value in enumerate(curve):
            book.evaluations.append((float(i), i, value, 1.0))
        for i in range(updates):
            fields = {"gamma": float(i), "tau": i, "accepted": True}
            book.updates.append(tuple(fields.get(name, 0) for name in UPDATE.names))
    (folder / "result.json").write_text(json.dumps({"wall_s": 3.0, "workers_busy": 0.5}))


@pytest.fixture
def done(path, tmp_path):
    """Seed 1 of asyncfeded reaches 0.5 after 1 s and 0.9 after 2 s, seed 2 after 3 s and never; hinge reaches nothing."""
    grid = study.load_study_grid(path)
    runs = [run for run in study.expand(grid) if run.error_probability == 0.0]
    for run in runs:
        curve = {("asyncfeded", 1): [0.1, 0.6, 0.95, 0.9], ("asyncfeded", 2): [0.1, 0.2, 0.3, 0.8]}
        finish(run, tmp_path, curve.get((run.rule, run.seed), [0.1, 0.2, 0.2, 0.2]))
    return grid, study.collect(grid, list(study.expand(grid)), tmp_path)


def test_a_row_has_the_best_and_last_value_and_the_times_to_targets(done):
    row = next(row for row in done[1] if (row.run.rule, row.run.seed) == ("asyncfeded", 1))
    assert (row.best, row.final, row.seconds_to) == (0.95, 0.9, (1.0, 2.0))
    assert row.mean == pytest.approx((0.1 + 0.6 + 0.95 + 0.9) / 4)
    assert row.gamma.tolist() == [2.25, 4.5, 6.75]


def test_runs_that_are_not_done_have_no_row(done):
    assert {row.run.error_probability for row in done[1]} == {0.0}
    assert len(done[1]) == 4


def test_the_table_tells_means_medians_and_never(done):
    """Medians of 1 and 3 s, and of 2 s and never; the deviation of 95 and 80 is 15 / sqrt(2)."""
    text = study.to_markdown(*done)
    assert "| asyncfeded | 2 of 2 | 87.50 ± 10.61 | 85.00 ± 7.07 | 10 | 2 | 1.0 | never |  |" in text
    assert "| hinge | 2 of 2 | 20.00 ± 0.00 | 20.00 ± 0.00 | 10 | never |  | never |  |" in text
    assert text.startswith("Small.\n")
    assert "| rule | runs | best accuracy (%) | final (%) | updates | s to 0.5 | x | s to 0.9 | x |" in text
    assert "\nx: the time divided by that of asyncfeded; it is empty where asyncfeded did not reach 0.9.\n" in text


def test_a_rule_whose_runs_are_not_done_has_a_line_and_nothing_is_compared_with_another(done):
    """The first rule is compared with, and there is only hinge, of which seed 2 is not done."""
    grid, rows = done
    text = study.to_markdown(grid, [row for row in rows if (row.run.rule, row.run.seed) == ("hinge", 1)])
    assert "| asyncfeded | 0 of 2 |  |  |  |  |  |  |  |\n| hinge | 1 of 2 | 20.00 | 20.00 | 10 |" in text
    assert "x: the time divided by that of asyncfeded; it is empty, since no run of asyncfeded is done." in text
    assert "Not done: asyncfeded with seed 1, 2.\nNot done: hinge with seed 2.\n" in text
    assert text.count("### digits") == 2


def test_the_csv_has_a_line_for_each_run(done, tmp_path):
    grid, rows = done
    runs = list(study.expand(grid))
    (tmp_path / "runs" / f"{runs[-1].name}.log").write_text("it failed")
    study.write_csv(grid, runs, rows, tmp_path, tmp_path / "table.csv")
    lines = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert len(lines) == len(runs) == 8
    assert lines[-1]["outcome"] == f"not done, see runs/{runs[-1].name}.log"
    assert (lines[-1]["best"], lines[-1]["seconds_to_target_1"]) == ("", "")
    assert [line["outcome"] for line in lines].count("done") == 4
    line = next(line for line in lines if (line["rule"], line["seed"]) == ("asyncfeded", "2"))
    assert (line["target_1"], line["seconds_to_target_1"], line["seconds_to_target_2"]) == ("0.5", "3", "")
    assert (line["metric"], float(line["best"])) == ("accuracy", 0.8)


def test_tuning_chooses_the_best_run_over_its_whole_time(path, tmp_path):
    grid = study.load_study_grid(path)
    runs = list(study.expand_tuning(grid))
    for run in runs:
        rule = {"rule.lambda": 1.0} if run.rule == "asyncfeded" else {"rule.staleness": "polynomial"}
        good = run.values == {"training.learning_rate": 0.1} | rule
        finish(run, tmp_path, [0.5, 0.6] if good else [0.1, 0.7])
    (tmp_path / "chosen.toml").write_text(study.chosen(grid, study.collect(grid, runs, tmp_path)))
    chosen = read_toml(tmp_path / "chosen.toml")
    assert chosen["rules"]["asyncfeded"]["on"]["digits"] == {"rule": {"lambda": 1.0}, "training": {"learning_rate": 0.1}}
    assert chosen["rules"]["hinge"]["on"]["digits"]["rule"] == {"staleness": "polynomial"}


PERPLEXITY = Metrics({"perplexity": Metric("min", "characters"), "accuracy": Metric("max")}, "perplexity")


def test_a_metric_whose_smallest_value_is_the_best_is_compared_so(path, tmp_path):
    """It is at 10 after 1 s, at 3 after 2 s, and ends at 4; a variant whose mean is 5 is better than one of 6."""
    grid = study.load_study_grid(path, ["tasks.digits.targets=[10,2]"])
    run = next(study.expand(grid))
    finish(run, tmp_path, [30.0, 10.0, 3.0, 4.0], metrics=PERPLEXITY)
    (row,) = study.collect(grid, [run], tmp_path)
    assert (row.best, row.final, row.seconds_to) == (3.0, 4.0, (1.0, np.inf))
    text = study.to_markdown(grid, [row])
    assert "| rule | runs | best perplexity (characters) | final (characters) | updates |" in text
    assert "| asyncfeded | 1 of 2 | 3 | 4 | 10 | 1 | 1.0 | never |  |" in text
    tried = [run for run in study.expand_tuning(grid) if run.rule == "hinge"]
    for number, run in enumerate(tried):
        finish(run, tmp_path, [5.0 if number == 4 else 6.0], metrics=PERPLEXITY)
    chosen = study.chosen(grid, study.collect(grid, tried, tmp_path)).partition("[rules")[1:]
    (tmp_path / "chosen.toml").write_text("".join(chosen))
    learning_rate = read_toml(tmp_path / "chosen.toml")["rules"]["hinge"]["on"]["digits"]["training"]["learning_rate"]
    assert learning_rate == tried[4].values["training.learning_rate"]


def test_tuning_says_what_was_not_tried_to_the_end(path, tmp_path):
    grid = study.load_study_grid(path)
    runs = [run for run in study.expand_tuning(grid) if run.rule == "hinge"]
    for run in runs[1:]:
        finish(run, tmp_path, [0.5, 0.6])
    text = study.chosen(grid, study.collect(grid, runs, tmp_path))
    assert text.startswith(
        "# asyncfeded on digits: 0 of 6 runs are done, the others were not chosen from.\n"
        "# hinge on digits: 5 of 6 runs are done, the others were not chosen from.\n[rules"
    )


# --- for real


def test_a_study_runs_and_then_skips_what_is_done(own_mpi, path, tmp_path):
    changed(path, "error_probabilities = [0.0, 0.5]", "error_probabilities = [0.2]")
    changed(path, "seeds = [1, 2]", "seeds = [1]")
    command = ("study", path, "--output", tmp_path / "out", "--jobs", "2")
    first = run_asyncfeded(*command, cwd=tmp_path, env=own_mpi.env)
    assert first.status == 0, str(first)
    (run_dir, _) = sorted(path for path in (tmp_path / "out" / "runs").iterdir())
    crowded = len(os.sched_getaffinity(0)) < 2 * 2
    assert read_toml(run_dir / "config.toml")["wait"] == ("yield" if crowded else "auto")
    assert "### digits, error probability 0.2" in first.stdout
    pictures = [line for line in first.stdout.splitlines() if line.endswith(".png")]
    assert len(pictures) == 3
    assert all(Path(picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    (cut_off, _) = sorted((tmp_path / "out" / "runs").iterdir())
    (cut_off / "result.json").unlink()
    again = run_asyncfeded(*command, cwd=tmp_path, env=own_mpi.env)
    assert again.status == 0, str(again)
    assert "2 runs, 1 of them done already" in again.stderr
    assert again.stdout.replace("\n", "") == first.stdout.replace("\n", "")


def test_a_run_that_fails_is_named_and_the_others_go_on(own_mpi, path, tmp_path):
    """Also that of the first rule: no other takes its place in the comparison."""
    changed(path, "error_probabilities = [0.0, 0.5]", "error_probabilities = [0.2]")
    changed(path, "seeds = [1, 2]", "seeds = [1]")
    changed(path, "rule.lambda = 0.7", "rule.lambda = 1e30")
    done = run_asyncfeded("study", path, "--output", tmp_path / "out", cwd=tmp_path, env=own_mpi.env)
    assert done.status == 2, str(done)
    assert "1 of 2 runs failed: digits-asyncfeded-p0.2-s1-" in done.stderr
    assert "Traceback" not in done.stderr
    assert "| asyncfeded | 0 of 1 |" in done.stdout
    assert "| hinge | 1 of 1 |" in done.stdout
    assert "it is empty, since no run of asyncfeded is done" in done.stdout
    pictures = [Path(line).name for line in done.stdout.splitlines() if line.endswith(".png")]
    assert pictures == ["digits-accuracy.png", "digits-errors.png"]


def test_a_study_that_goes_on_is_not_begun_a_second_time(own_mpi, path, tmp_path):
    changed(path, "error_probabilities = [0.0, 0.5]", "error_probabilities = [0.2]")
    changed(path, "seeds = [1, 2]", "seeds = [1]")
    command = ("study", path, "--output", tmp_path / "out")
    with Job(tmp_path, own_mpi.env, *command) as first:
        first.until(lambda: list((tmp_path / "out" / "runs").glob("*.toml")))
        second = run_asyncfeded(*command, cwd=tmp_path, env=own_mpi.env)
        assert second.status == 2, str(second)
        assert f"{tmp_path / 'out'} is in use by process {first.process.pid} of" in second.stderr
        assert second.stderr.count("asyncfeded: ") == 1, str(second)
        status, said = first.end()
    assert status == 0, said
    assert len(list((tmp_path / "out" / "runs").glob("*/result.json"))) == 2
    assert "\n| hinge | " in said
