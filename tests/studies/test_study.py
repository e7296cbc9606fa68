"""A grid becomes runs; and one small study for real."""

import signal
from pathlib import Path

import pytest

from asyncfeded.files.plain import read_toml
from asyncfeded.studies import study
from conftest import Job, run_asyncfeded
from studies.grids import changed

LAUNCH = Path(__file__).parents[2] / "launch"


@pytest.mark.parametrize("name", ["protocol", "protocol_small", "reach"])
def test_a_grid_of_launch_is_read(name):
    grid = study.load_study_grid(LAUNCH / f"{name}.toml")
    assert all(list(study.expand(grid, setting, {})) for setting in grid.settings if setting != "tuned")


def test_a_grid_is_every_combination_once(path):
    runs = list(study.expand(study.load_study_grid(path), "given", {}))
    told = {(run.task, run.rule, run.error_probability, run.seed) for run in runs}
    assert len(runs) == len(told) == 1 * 2 * 2 * 2


def test_a_run_has_its_seed_its_errors_and_the_layers_of_the_grid(path):
    run = next(
        r
        for r in study.expand(study.load_study_grid(path), "given", {})
        if (r.rule, r.seed, r.error_probability) == ("asyncfeded", 2, 0.5)
    )
    assert (run.config.seed, run.config.heterogeneity.error_probability) == (2, 0.5)
    assert (run.config.clock, run.config.task["split"], run.config.training.epochs) == ("virtual", "even", 1)
    assert run.config.rule["lambda"] == 0.7


def test_untuned_rules_have_their_defaults_and_what_all_share(path):
    grid = study.load_study_grid(path, ['settings=["untuned"]'])
    run = next(study.expand(grid, "untuned", {}))
    assert (run.config.rule["lambda"], run.config.training.learning_rate) == (1.0, 0.03)


def test_tuned_rules_have_what_was_found_and_none_where_nothing_was(path):
    grid = study.load_study_grid(path)
    chosen = {("digits", "hinge"): {"rule.alpha": 0.2, "training.learning_rate": 0.1}}
    runs = list(study.expand(grid, "tuned", chosen))
    assert {(run.rule, run.config.rule["alpha"], run.config.training.learning_rate) for run in runs} == {("hinge", 0.2, 0.1)}


def test_a_trial_is_a_part_of_the_time_and_not_in_the_way_of_what_differs_on_a_task(path):
    grid = study.load_study_grid(path)
    first, last = (study.tuning_run(grid, "digits", "asyncfeded", {"rule.lambda": 0.5}, round_) for round_ in (0, 1))
    assert (first.config.limits.seconds, last.config.limits.seconds) == (1.0, 2.0)
    assert (first.config.seed, first.config.rule["lambda"]) == (1000, 0.5)
    assert study.tuning_run(grid, "digits", "asyncfeded", {}, 0).config.rule["lambda"] == 1.0


def test_a_task_may_have_error_probabilities_of_its_own(path):
    grid = study.load_study_grid(path, ["tasks.digits.error_probabilities=[0.9]"])
    assert {run.error_probability for run in study.expand(grid, "given", {})} == {0.9}


def test_keys_given_beside_the_grid_replace_its_own(path):
    grid = study.load_study_grid(path, ["tasks.digits.run.training.epochs=3", "seeds=[7]", "run.clients=2"])
    runs = list(study.expand(grid, "given", {}))
    assert {(run.config.training.epochs, run.seed, run.config.clients) for run in runs} == {(3, 7, 2)}
    with pytest.raises(ValueError, match="expected key=value"):
        study.load_study_grid(path, ["seeds"])


def test_runs_of_other_configs_have_other_names(path):
    grid = study.load_study_grid(path)
    trials = [study.tuning_run(grid, "digits", "hinge", {"rule.alpha": alpha}, 0) for alpha in (0.2, 0.3)]
    names = [run.name for run in (*study.expand(grid, "given", {}), *trials)]
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
        (
            "run.training.epochs = 1\n",
            "run.training.epochs = 11\n",
            "asyncfeded on digits: rule AsyncFedED, init: ",
        ),
    ],
)
def test_a_wrong_grid_is_refused_before_any_run(path, old, new, words):
    with pytest.raises(ValueError, match=words):
        study.load_study_grid(changed(path, old, new))


def test_a_range_that_a_rule_does_not_allow_is_refused_before_any_run(path):
    changed(path, "to = 1.0, scale", "to = 1.5, scale")
    study.load_study_grid(path)
    with pytest.raises(ValueError, match=r"digits with hinge: rule: alpha = 1.5: input should be less than or equal to 1"):
        study.load_study_grid(path, ['settings=["tuned"]'])
    changed(path, 'tune."rule.alpha" = {from = 0.1, to = 1.5, scale = "linear"}', "")
    changed(path, 'tune."training.learning_rate" = {from = 0.01, to = 0.3}', "")
    with pytest.raises(ValueError, match=r"nothing is tuned for hinge on digits: give rules.hinge.tune or"):
        study.load_study_grid(path, ['settings=["tuned"]'])


# --- for real


def test_a_study_searches_runs_and_goes_on_from_its_rows_alone(own_mpi, path, tmp_path):
    """Untuned and tuned; the first command has no time for more than what it begins with, the second does the rest."""
    changed(path, "error_probabilities = [0.0, 0.5]", 'error_probabilities = [0.2]\nkeep = "rows"')
    changed(path, 'caption = "Small."', 'settings = ["untuned", "tuned"]')
    changed(path, "seeds = [1, 2]", "seeds = [1]")
    changed(path, "limits.seconds = 4", "limits.seconds = 2")
    changed(path, "trials = 4", "trials = 2")
    command = ("study", path, "--output", tmp_path / "out")  # one job does two runs of the search
    first = run_asyncfeded(*command, "--hours", "1e-6", cwd=tmp_path, env=own_mpi.env)
    assert first.status == 75, str(first)
    assert "of the runs that are known so far are left; the same command goes on with them" in first.stderr
    whole = run_asyncfeded(*command, cwd=tmp_path, env=own_mpi.env)
    assert whole.status == 0, str(whole)
    assert "## untuned" in whole.stdout
    assert "### The search" in whole.stdout
    assert set(read_toml(tmp_path / "out" / "chosen.toml")["rules"]) == {"asyncfeded", "hinge"}
    pictures = [line for line in whole.stdout.splitlines() if line.endswith(".png")]
    assert all(Path(picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert {Path(picture).name for picture in pictures} == {
        f"{setting}-{what}.png" for setting in ("untuned", "tuned") for what in ("digits-accuracy", "ranks")
    }
    assert not list((tmp_path / "out" / "runs").glob("*/record.h5"))
    again = run_asyncfeded(*command, cwd=tmp_path, env=own_mpi.env)
    assert (again.status, again.stdout.replace("\n", "")) == (0, whole.stdout.replace("\n", "")), str(again)
    assert "runs, " not in again.stderr


def test_a_run_that_fails_is_counted_as_the_worst_and_the_others_go_on(own_mpi, path, tmp_path):
    """Also that of the first rule, which is the first of two in its job: no other takes its place in the comparison."""
    changed(path, "error_probabilities = [0.0, 0.5]", "error_probabilities = [0.2]")
    changed(path, "rule.lambda = 0.7", "rule.lambda = 1e30")
    done = run_asyncfeded("study", path, "--output", tmp_path / "out", cwd=tmp_path, env=own_mpi.env)
    assert done.status == 0, str(done)
    assert "2 runs failed, and count as the worst" in done.stderr
    assert "Traceback" not in done.stderr
    assert "| asyncfeded | 2 of 2, 2 failed |" in done.stdout
    assert "| hinge | 2 of 2 |" in done.stdout
    run_dirs = [path.parent for path in (tmp_path / "out" / "runs").glob("*/result.json")]
    assert [read_toml(run_dir / "config.toml")["wait"] for run_dir in run_dirs] == ["auto"] * 4


def test_a_study_that_goes_on_is_not_begun_a_second_time(own_mpi, path, tmp_path):
    changed(path, "error_probabilities = [0.0, 0.5]", "error_probabilities = [0.2]")
    changed(path, "seeds = [1, 2]", "seeds = [1]")
    command = ("study", path, "--output", tmp_path / "out")
    with Job(tmp_path, own_mpi.env, *command) as first:
        first.until(lambda: list((tmp_path / "out" / "runs").glob("*.toml")))
        first.process.send_signal(signal.SIGSTOP)  # it does not end before the second has begun
        second = run_asyncfeded(*command, cwd=tmp_path, env=own_mpi.env)
        first.process.send_signal(signal.SIGCONT)
        assert second.status == 2, str(second)
        assert f"{tmp_path / 'out'} is in use by process {first.process.pid} of" in second.stderr
        assert second.stderr.count("asyncfeded: ") == 1, str(second)
        status, said = first.end()
    assert status == 0, said
    assert len(list((tmp_path / "out" / "runs").glob("*/result.json"))) == 2
    assert "\n| hinge | " in said
