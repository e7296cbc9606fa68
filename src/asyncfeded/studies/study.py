"""A study: a grid of runs (tasks x rules x error probabilities x seeds) that makes one table.

It can be stopped: finished runs are skipped. Each run is a separate job (jobs.py). Tables are made only from the
records of the runs. `StudyGrid` is the schema of the file.
"""

import csv
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tomli_w
from pydantic import Field

from asyncfeded.config import Config, Settings, load_section
from asyncfeded.files.plain import read_numbers
from asyncfeded.metric import Metric, Metrics
from asyncfeded.store import record
from asyncfeded.studies import jobs


class TaskOfGrid(Settings):
    """One task of the grid."""

    run: dict[str, Any]
    """The part of a run's config that belongs to the task."""
    targets: tuple[float, ...]
    """Values of the task's metric (evaluation.metric); the time to reach each is measured."""
    tune: dict[str, list[Any]] = Field(default_factory=dict)
    """Values that tuning tries for every rule on this task, by key (section.key), such as a learning rate."""


class RuleOfGrid(Settings):
    """One rule of the grid."""

    run: dict[str, Any]
    """The part of a run's config that belongs to the rule."""
    on: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """By task: the values that differ on that task, as tuning chose them."""
    tune: dict[str, list[Any]] = Field(default_factory=dict)
    """Values that tuning tries, by key (section.key). It tries all combinations, together with the values of the task."""


class Tuning(Settings):
    """How tuning chooses values."""

    seed: int = 1000
    """Seed of the tuning runs; must not be among the seeds of the results."""
    error_probability: float = 0.1
    """Error probability of the tuning runs."""
    run: dict[str, Any] = Field(default_factory=dict)
    """The part of the config in which tuning runs differ from the runs of the results, such as fewer seconds."""


class StudyGrid(Settings):
    """A study: every task with every rule, error probability and seed."""

    run: dict[str, Any]
    """Config that all runs share."""
    tasks: jobs.Labelled[TaskOfGrid]
    """By label, which names files: letters, digits, spaces and . + = , @ _ -."""
    rules: jobs.Labelled[RuleOfGrid]
    """Rules by label. The others are compared with the first."""
    error_probabilities: tuple[float, ...]
    """heterogeneity.error_probability of the runs."""
    seeds: tuple[int, ...]
    """Seeds of the runs; they determine data, initial model and errors."""
    tuning: Tuning = Tuning()
    caption: str = ""
    """Text above the tables, for example what was made smaller than in the source."""


class StudyRun(NamedTuple):
    """One run of the grid."""

    task: str
    rule: str
    error_probability: float
    seed: int
    config: Config
    values: dict[str, Any]
    """The values that tuning tries, by key; empty in a run of the results."""

    @property
    def name(self) -> str:
        """Name of its folder; ends with the hash of its config."""
        return f"{self.task}-{self.rule}-p{self.error_probability:g}-s{self.seed}-{jobs.digest(self.config)[:8]}"


class StudyRow(NamedTuple):
    """The line of a run in the table."""

    run: StudyRun
    run_dir: Path
    metrics: Metrics
    """Of its task; `best`, `final` and `mean` are of the goal."""
    best: float
    final: float
    mean: float
    """Mean over the evaluations, which are evenly spaced; good for runs that are both fast and good."""
    seconds_to: tuple[float, ...]
    """Seconds of the run's clock to each target of the task; infinity if it was not reached."""
    updates: int
    gamma: np.ndarray
    """Quartiles (3,) over the merged updates."""
    tau: np.ndarray
    wall_s: float
    workers_busy: float


def load_study_grid(path: Path, overrides: Sequence[str] = ()) -> StudyGrid:
    """Read a grid and check it, with the config of every run that it makes.

    Args:
        path: a TOML file.
        overrides: `section.key=value`, as for a run.

    Raises:
        ValueError: a key or a value is wrong.
    """
    grid = load_section(StudyGrid, path, overrides)
    if grid.tuning.seed in grid.seeds:
        raise ValueError(f"{path}: tuning.seed = {grid.tuning.seed} is among the seeds of the results; choose another")
    for label, plan in grid.rules.items():
        if unknown := set(plan.on) - set(grid.tasks):
            raise ValueError(f"{path}: rules.{label}.on names {', '.join(sorted(unknown))}, which is not among the tasks")
    for _ in itertools.chain(expand(grid), expand_tuning(grid)):
        pass  # all configs are checked as they are made
    return grid


def expand(grid: StudyGrid) -> Iterator[StudyRun]:
    """The runs of a grid."""
    for seed, p, task, rule in itertools.product(grid.seeds, grid.error_probabilities, grid.tasks, grid.rules):
        yield _run(grid, task, rule, p, seed, {})


def expand_tuning(grid: StudyGrid) -> Iterator[StudyRun]:
    """The tuning runs: each task and rule with all combinations of the values that the `tune` of both lists."""
    for task, rule in itertools.product(grid.tasks, grid.rules):
        lists = grid.tasks[task].tune | grid.rules[rule].tune
        for values in itertools.product(*lists.values()):
            tried = dict(zip(lists, values, strict=True))
            yield _run(grid, task, rule, grid.tuning.error_probability, grid.tuning.seed, tried)


def execute(
    runs: Sequence[StudyRun], out: Path, ranks: int, side_by_side: int, say: Callable[[str], None]
) -> list[jobs.GridJob]:
    """Do the missing runs, each with so many MPI ranks, in the folder `runs` of the study (`jobs.execute`)."""
    return jobs.execute([jobs.GridJob(run.name, run.config, ranks) for run in runs], out / "runs", side_by_side, say)


def collect(grid: StudyGrid, runs: Sequence[StudyRun], out: Path) -> list[StudyRow]:
    """A row for each finished run."""
    rows = []
    for run in runs:
        run_dir = out / "runs" / run.name
        if not jobs.is_done(out / "runs", run.name):
            continue
        result = read_numbers(run_dir / "result.json", ("wall_s", "workers_busy"), jobs.AGAIN)
        tables = record.read_record(run_dir)
        if not len(tables.evaluations):
            raise ValueError(f"{run_dir}: its record holds no evaluation; {jobs.AGAIN}")
        merged, metric = tables.updates[tables.updates["accepted"]], tables.metrics.of_goal
        times, values = tables.evaluations["time_s"], tables.evaluations[tables.metrics.goal]
        reached = [times[metric.reaches(values, target)] for target in grid.tasks[run.task].targets]
        rows.append(
            StudyRow(
                run,
                run_dir,
                tables.metrics,
                metric.best_of(values),
                float(values[-1]),
                float(values.mean()),
                tuple(float(t[0]) if len(t) else np.inf for t in reached),
                len(merged),
                quartiles(merged["gamma"]),
                quartiles(merged["tau"]),
                float(result["wall_s"]),
                float(result["workers_busy"]),
            )
        )
    return rows


def write_csv(grid: StudyGrid, runs: Sequence[StudyRun], rows: Sequence[StudyRow], out: Path, path: Path) -> None:
    """Write one line for each run of the grid; a run that is not done has no figures, and targets not reached are empty.

    `metric` is what `best`, `final`, `mean` and the targets are values of.
    """
    done = {row.run.name: row for row in rows}
    most = max(len(plan.targets) for plan in grid.tasks.values())
    head = ["task", "rule", "error_probability", "seed", "config_sha256", "outcome"]
    head += ["metric", "best", "final", "mean", "updates"]
    head += [f"{name}_{quartile}" for name in ("gamma", "tau") for quartile in ("q1", "median", "q3")]
    head += ["wall_s", "workers_busy"]
    head += [f"{what}_{i + 1}" for i in range(most) for what in ("target", "seconds_to_target")]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        for run in runs:
            line: list[Any] = [run.task, run.rule, run.error_probability, run.seed, jobs.digest(run.config)]
            line += [jobs.outcome(out / "runs", run.name)]
            if row := done.get(run.name):
                line += [row.metrics.goal, row.best, row.final, row.mean, row.updates]
                line += [*row.gamma, *row.tau, row.wall_s, row.workers_busy]
                for target, seconds in zip(grid.tasks[run.task].targets, row.seconds_to, strict=True):
                    line += [target, seconds if np.isfinite(seconds) else ""]
            cells = [f"{x:.6g}" if isinstance(x, float) else x for x in line]
            writer.writerow(cells + [""] * (len(head) - len(cells)))


def to_markdown(grid: StudyGrid, rows: Sequence[StudyRow]) -> str:
    """The comparison of the rules: a table for each task and error probability, with a line for every rule.

    Values are means and standard deviations over the seeds, of fractions in percent; times are medians. `x` is the time
    divided by that of the grid's first rule, and of no other: where that has none, `x` is empty, and the lines below the
    table say why.
    """
    lines = [grid.caption.strip(), ""] if grid.caption else []
    for (task, plan), p in itertools.product(grid.tasks.items(), grid.error_probabilities):
        of_task = [row for row in rows if row.run.task == task and row.run.error_probability == p]
        by_rule = {rule: [row for row in of_task if row.run.rule == rule] for rule in grid.rules}
        targets = " | ".join(f"s to {target:.4g} | x" for target in plan.targets)
        lines += [f"### {task}, error probability {p:g}", ""]
        goal = next((row.metrics.goal for row in of_task), "metric")
        unit = next((_unit(row.metrics.of_goal) for row in of_task), "")
        lines += [f"| rule | runs | best {goal}{unit} | final{unit} | updates | {targets} |"]
        lines += ["|---|" + "---:|" * (4 + 2 * len(plan.targets))]
        first = _median_seconds(plan, by_rule[next(iter(grid.rules))])
        for rule, mine in by_rule.items():
            cells = [rule, f"{len(mine)} of {len(grid.seeds)}"]
            if mine:
                metric = mine[0].metrics.of_goal
                cells += [_spread(metric, [row.best for row in mine]), _spread(metric, [row.final for row in mine])]
                cells += [f"{np.mean([row.updates for row in mine]):.0f}"]
                for median, reference in zip(_median_seconds(plan, mine), first, strict=True):
                    known = np.isfinite(median) and np.isfinite(reference) and reference > 0
                    cells += [
                        f"{median:.0f}" if np.isfinite(median) else "never",
                        f"{median / reference:.1f}" if known else "",
                    ]
            else:
                cells += [""] * (3 + 2 * len(plan.targets))
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", *_remarks(grid, by_rule, dict(zip(plan.targets, first, strict=True))), ""]
    return "\n".join(lines)


def _median_seconds(plan: TaskOfGrid, rows: Sequence[StudyRow]) -> list[float]:
    """Median of the seconds to each target; infinite if most runs did not reach it, NaN if there is no run."""
    return [float(np.median([row.seconds_to[i] for row in rows])) if rows else np.nan for i in range(len(plan.targets))]


def _remarks(grid: StudyGrid, by_rule: dict[str, list[StudyRow]], first: dict[float, float]) -> Iterator[str]:
    """What the reader of a table must know: what x is, why it is empty, and which runs are missing."""
    name, *others = grid.rules
    never = [f"{target:.4g}" for target, seconds in first.items() if np.isinf(seconds)]
    at_once = [f"{target:.4g}" for target, seconds in first.items() if seconds == 0]
    if others:
        empty = "" if by_rule[name] else f"; it is empty, since no run of {name} is done"
        empty += f"; it is empty where {name} did not reach {', '.join(never)}" if never else ""
        empty += f"; it is empty where {name} was at {', '.join(at_once)} from the start" if at_once else ""
        yield f"x: the time divided by that of {name}{empty}."
    for rule, rows in by_rule.items():
        if missing := sorted(set(grid.seeds) - {row.run.seed for row in rows}):
            yield f"Not done: {rule} with seed {', '.join(map(str, missing))}."


def chosen(grid: StudyGrid, rows: Sequence[StudyRow]) -> str:
    """The best variant of each rule on each task, as TOML for the grid's file; comments say what was not tried to the end.

    The best variant has the best mean of the metric over the run, so that both speed and final value count.
    """
    planned = Counter((run.task, run.rule) for run in expand_tuning(grid))
    done = Counter((row.run.task, row.run.rule) for row in rows)
    remarks = [
        f"# {rule} on {task}: {done[task, rule]} of {number} runs are done, the others were not chosen from.\n"
        for (task, rule), number in planned.items()
        if done[task, rule] < number
    ]
    best: dict[str, dict[str, dict[str, Any]]] = {}
    for task in grid.tasks:
        of_task = [row for row in rows if row.run.task == task]
        for rule in grid.rules:
            mine = [row for row in of_task if row.run.rule == rule and row.run.values]
            if mine:
                means = np.array([row.mean for row in mine])
                best_mean = mine[0].metrics.of_goal.best_of(means)
                row = next((row for row in mine if row.mean == best_mean), mine[0])
                best.setdefault(rule, {})[task] = row.run.values
    table = {"rules": {rule: {"on": {t: jobs.nest(values) for t, values in on.items()}} for rule, on in best.items()}}
    return "".join(remarks) + tomli_w.dumps(table)


def _run(grid: StudyGrid, task: str, rule: str, p: float, seed: int, values: dict[str, Any]) -> StudyRun:
    plan = grid.rules[rule]
    settled = grid.tuning.run if values else plan.on.get(task, {})
    errors = {"seed": seed, "heterogeneity": {"error_probability": p}}
    layers = (grid.run, grid.tasks[task].run, plan.run, settled, jobs.nest(values), errors)
    return StudyRun(task, rule, p, seed, jobs.compose(layers, f"{task} with {rule}"), values)


def quartiles(values: np.ndarray) -> np.ndarray:
    """The quartiles (3,) of the values that are finite; NaN if none is."""
    finite = values[np.isfinite(values)]
    return np.percentile(finite, [25, 50, 75]) if len(finite) else np.full(3, np.nan)


def _unit(metric: Metric) -> str:
    """The unit of the values in a table, as it stands behind their name."""
    return " (%)" if metric.is_fraction else f" ({metric.unit})" if metric.unit else ""


def _spread(metric: Metric, values: Sequence[float]) -> str:
    """Mean and standard deviation, of fractions in percent; one value has no deviation."""
    numbers = [np.mean(values), *([np.std(values, ddof=1)] if len(values) > 1 else [])]
    return " ± ".join(f"{100 * number:.2f}" if metric.is_fraction else f"{number:.5g}" for number in numbers)
