"""Rows become tables, by hand."""

import csv

import pytest

from asyncfeded.metric import Metric, Metrics
from asyncfeded.studies import study, tables
from studies.grids import told

CURVES = {
    ("asyncfeded", 1): [0.1, 0.6, 0.95, 0.9], ("asyncfeded", 2): [0.1, 0.2, 0.3, 0.8],
    ("hinge", 1): [0.1, 0.2, 0.2, 0.2], ("hinge", 2): [0.1, 0.2, 0.2, 0.2],
}  # fmt: skip


@pytest.fixture
def grid(path):
    return study.load_study_grid(path)


def test_the_table_tells_medians_intervals_and_never(grid, tmp_path):
    """Medians of 1 and 3 s, and of 2 s and never; 50 % of 400 samples: 1.96 sqrt(2 * 0.25 / 400) = 6.93 points."""
    text = tables.to_markdown(grid, told(grid, tmp_path, CURVES))
    assert text.startswith("Small.\n")
    assert "| rule | runs | final accuracy (%) | best | mean over the run | updates | s to 0.5 | x | s to 0.9 | x |" in text
    assert "| asyncfeded | 2 of 2 | 85.00 [80.00, 90.00] | 87.50 [80.00, 95.00] |" in text
    assert "| 10 | 2 [1, 3] | 1.0 | never [2, never] |  |" in text
    assert "| hinge | 2 of 2 | 20.00 | 20.00 | 17.50 | 10 | never |  | never |  |" in text
    assert "400 test samples: by chance two models as good as these (50.0 %) differ by up to 6.93 points (95 %)." in text


def test_the_table_says_which_states_of_the_program_made_the_runs(grid, tmp_path):
    done = told(grid, tmp_path, CURVES)
    programs = ["0.2.0 aaa", "0.2.0 bbb", "", "0.2.0 bbb"]
    by_name = {name: row._replace(program=one) for (name, row), one in zip(done.rows.items(), programs, strict=True)}
    text = tables.to_markdown(grid, done._replace(rows=by_name))
    assert (
        "Runs by the program that made them: asyncfeded 0.2.0 bbb (2), asyncfeded 0.2.0 aaa (1), a state not known (1)."
        in text
    )


def test_several_tasks_and_settings_are_in_one_table(grid, tmp_path):
    """A rule of one level has no value at the other; the best is bold."""
    assert "## All tasks" not in tables.to_markdown(grid, told(grid, tmp_path / "one", CURVES))
    done = told(grid, tmp_path, CURVES, levels=(0.0, 0.5))
    of_hinge = {run.name for run in done.runs["given"] if (run.rule, run.error_probability) == ("hinge", 0.5)}
    kept = {name: row for name, row in done.rows.items() if name not in of_hinge}
    text = tables.to_markdown(grid, done._replace(rows=kept))
    assert "| rule | digits, p = 0 | digits, p = 0.5 |\n|---|---:|---:|\n| asyncfeded | **85.0** | **85.0** |" in text
    assert "\n| hinge | 20.0 | - |\n" in text
    assert "### Time to the last target\n\n| rule |" in text
    assert "\n| asyncfeded | never | never |\n" in text  # one seed of two reaches 0.9
    both = study.load_study_grid(tmp_path / "grid.toml", ['settings=["untuned", "given"]'])
    runs = {"untuned": list(study.expand(both, "untuned", {})), **done.runs}
    untuned = {run.name: row._replace(final=0.5) for run, row in zip(runs["untuned"], done.rows.values(), strict=True)}
    text = tables.to_markdown(both, done._replace(runs=runs, rows=kept | untuned))
    assert "| asyncfeded | **50.0** / **85.0** | **50.0** / **85.0** |\n| hinge | **50.0** / 20.0 | **50.0** / - |" in text


@pytest.mark.parametrize(("best", "sign"), [("min", 1), ("max", -1)])
def test_the_best_is_bold_whatever_the_sign_of_the_metric(path, tmp_path, best, sign):
    """A loss of 4 beside one of 9, or a score of -4 beside one of -9."""
    grid = study.load_study_grid(path, ["tasks.digits.targets=[10]"])
    metrics = Metrics({"goal": Metric(best), "accuracy": Metric("max")}, "goal")
    curves = {("asyncfeded", 1): [30.0 * sign, 4.0 * sign], ("hinge", 1): [30.0 * sign, 9.0 * sign]}
    text = tables.to_markdown(grid, told(grid, tmp_path, curves, metrics, (0.0, 0.5)))
    assert f"| asyncfeded | **{4 * sign}** | **{4 * sign}** |\n| hinge | {9 * sign} | {9 * sign} |" in text


def test_differences_are_of_pairs_and_corrected(grid, tmp_path):
    """-0.7 and -0.6, the first rule sooner in one pair, one tie: 2 pairs of one sign have p = 2 / 4."""
    text = tables.to_markdown(grid, told(grid, tmp_path, CURVES))
    assert "### digits: differences to asyncfeded" in text
    assert "With so many pairs the smallest p of that test is 0.5." in text
    assert "| hinge | 2 | -65 [-70, -60] | 0.5 | 0, 1 | 1 |" in text


def test_ranks_are_over_the_cells_that_all_rules_have(grid, tmp_path):
    text = tables.to_markdown(grid, told(grid, tmp_path, CURVES))
    assert "Mean ranks over 1 pairs of task and error probability" in text
    assert "| asyncfeded | 1.00 | 1.50 | 1.00 |\n| hinge | 2.00 | 1.50 | 2.00 |" in text  # neither is at 0.9 in most runs


def test_a_failed_run_counts_as_the_worst_value_of_any(grid, tmp_path):
    text = tables.to_markdown(grid, told(grid, tmp_path, CURVES | {("hinge", 1): None}))
    assert "| hinge | 2 of 2, 1 failed | 15.00 [10.00, 20.00] | 15.00 [10.00, 20.00] |" in text
    assert "A run that failed (diverged) counts as the worst value of any run here." in text


def test_a_rule_whose_runs_are_not_done_has_a_line(grid, tmp_path):
    text = tables.to_markdown(grid, told(grid, tmp_path, {("hinge", 1): [0.2]}))
    assert "| asyncfeded | 0 of 2 |  |  |  |  |  |  |  |  |\n| hinge | 1 of 2 | 20.00 | 20.00 | 20.00 | 10 | never |" in text
    assert "### Ranks" not in text


def test_a_metric_whose_smallest_value_is_the_best_is_ranked_so(path, tmp_path):
    grid = study.load_study_grid(path, ["tasks.digits.targets=[10]"])
    perplexity = Metrics({"perplexity": Metric("min", "characters"), "accuracy": Metric("max")}, "perplexity")
    curves = {("asyncfeded", 1): [30.0, 10.0, 4.0], ("hinge", 1): [30.0, 20.0, 9.0]}
    text = tables.to_markdown(grid, told(grid, tmp_path, curves, perplexity))
    assert "| rule | runs | final perplexity (characters) | best |" in text
    assert "| asyncfeded | 1 of 2 | 4 | 4 | 14.667 | 10 | 1 | 1.0 |" in text
    assert "| asyncfeded | 1.00 | 1.00 | 1.00 |" in text


def test_the_csv_has_a_line_for_each_run(grid, tmp_path):
    tables.write_csv(grid, told(grid, tmp_path, CURVES), tmp_path / "table.csv")
    lines = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [line["outcome"] for line in lines].count("done") == 4
    assert len(lines) == 8
    line = next(line for line in lines if (line["rule"], line["seed"]) == ("asyncfeded", "2"))
    assert (line["target_1"], line["seconds_to_target_1"], line["seconds_to_target_2"]) == ("0.5", "3", "")
    assert (line["metric"], float(line["best"]), line["setting"]) == ("accuracy", 0.8, "given")
