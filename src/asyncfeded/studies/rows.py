"""The rows of a study: what stays of each run, as one line of rows.csv. Tables and figures are made from rows alone.

A row is written when its run has ended, and holds a coarse curve too, but for a trial of tuning, of which only the value is
needed. So a study can go on, and its figures can be drawn again, where the folders of its runs are gone.
"""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sized
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asyncfeded import tasks
from asyncfeded.files.plain import read_csv, read_numbers
from asyncfeded.metric import Metric
from asyncfeded.store import record
from asyncfeded.studies import jobs, statistics
from asyncfeded.studies.study import StudyRun
from asyncfeded.tasks.classification import Data

POINTS = 61
"""Points of a curve that are kept at most."""
DONE, FAILED = "done", "failed"
NUMBERS = ("best", "final", "mean", "updates", "wall_s", "workers_busy", "test_samples")
QUARTILES = tuple(f"{name}_{part}" for name in ("gamma", "tau") for part in ("q1", "median", "q3"))
COLUMNS = (
    "name", "task", "rule", "error_probability", "seed", "setting", "values", "program", "outcome",
    "metric", "better", "unit", *NUMBERS, *QUARTILES, "bests_s", "bests", "curve_s", "curve",
)  # fmt: skip
ADVICE = "asyncfeded study writes it into its folder (--output)"


class Row(NamedTuple):
    """A run that has ended; one that failed, such as a run that diverged, has no figures."""

    task: str
    rule: str
    p: float
    """Error probability."""
    seed: int
    values: dict[str, Any]
    """What tuning tried or has found, by key."""
    program: str
    """Version and commit of the program that ran it; empty if that is not known."""
    outcome: str
    """`done` or `failed`."""
    goal: str = ""
    """Name of the metric that all values are of."""
    metric: Metric = Metric("max")
    best: float = math.nan
    final: float = math.nan
    mean: float = math.nan
    """Mean over the evaluations, which are evenly spaced: the area under the curve, over its length."""
    updates: float = math.nan
    wall_s: float = math.nan
    workers_busy: float = math.nan
    test_samples: float = math.nan
    """Samples that the metric is taken over; NaN if the task does not tell."""
    gamma: np.ndarray = np.full(3, math.nan)
    """Quartiles over the merged updates."""
    tau: np.ndarray = np.full(3, math.nan)
    bests: np.ndarray = np.empty((2, 0))
    """(2, n): the seconds of the run's clock at which the metric was better than ever before, and what it was then."""
    curve: np.ndarray = np.empty((2, 0))
    """(2, points): seconds, and the metric then."""

    def seconds_to(self, target: float) -> float:
        """Seconds of the run's clock until the metric reached a target; infinite if it did not."""
        reached = self.bests[0, self.metric.reaches(self.bests[1], target)]
        return float(reached[0]) if len(reached) else math.inf


def of_run(run: StudyRun, run_dir: Path, test_samples: float) -> Row:
    """The row of a run that is done.

    Raises:
        ValueError: its files are damaged.
    """
    result = read_numbers(run_dir / "result.json", ("wall_s", "workers_busy"), jobs.AGAIN)
    tables = record.read_record(run_dir)
    if not len(tables.evaluations):
        raise ValueError(f"{run_dir}: its record holds no evaluation; {jobs.AGAIN}")
    merged, metric = tables.updates[tables.updates["accepted"]], tables.metrics.of_goal
    times, values = tables.evaluations["time_s"], tables.evaluations[tables.metrics.goal]
    row = Row(
        run.task,
        run.rule,
        run.error_probability,
        run.seed,
        run.values,
        _program(tables.attributes),
        DONE,
        tables.metrics.goal,
        Metric(metric.best, metric.unit),
        metric.best_of(values),
        float(values[-1]),
        float(values.mean()),
        len(merged),
        float(result["wall_s"]),
        float(result["workers_busy"]),
        test_samples,
    )
    if run.setting == "tuning":
        return row
    upwards = values if metric.best == "max" else -values
    newest = upwards > np.fmax.accumulate(np.append(-np.inf, upwards[:-1]))
    kept = np.unique(np.linspace(0, len(times) - 1, min(len(times), POINTS)).round().astype(int))
    return row._replace(
        gamma=statistics.quartiles(merged["gamma"]),
        tau=statistics.quartiles(merged["tau"]),
        bests=np.array([times[newest], values[newest]]),
        curve=np.array([times[kept], values[kept]]),
    )


def of_failure(run: StudyRun) -> Row:
    """The row of a run that failed."""
    return Row(run.task, run.rule, run.error_probability, run.seed, run.values, _program(record.provenance()), FAILED)


def _program(about: Mapping[str, Any]) -> str:
    """Version and commit of the program, from where a run came from; a `+` if its files were changed since."""
    commit = str(about["commit"])
    return f"{about['asyncfeded']} {commit[:12]}{'+' * commit.endswith('+')}".strip()


def test_samples(run: StudyRun) -> float:
    """How many samples the metric of a run is taken over; NaN if its task does not tell, as one with a stream."""
    data = tasks.load_task(run.config.task).test_data()
    return float(len(data.targets) if isinstance(data, Data) else len(data) if isinstance(data, Sized) else math.nan)


class Book:
    """The rows of a study, by the name of the run, in a file that is written whole with every row.

    Args:
        path: of rows.csv; rows that are there are read.

    Raises:
        ValueError: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[str, list[str]] = {}
        self.rows: dict[str, Row] = {}
        if path.exists():
            for line, cells in read_csv(path, COLUMNS, ADVICE):
                try:
                    self.rows[cells["name"]] = _read(cells)
                except (KeyError, ValueError) as error:
                    raise ValueError(f"{path}: line {line}: {error}; remove the line, and its run is done again") from None
                self._lines[cells["name"]] = [cells[column] for column in COLUMNS]

    def add(self, run: StudyRun, row: Row) -> None:
        """Add the row of a run. Raises OSError if the file cannot be written."""
        self.rows[run.name] = row
        self._lines[run.name] = [run.name, *_written(run, row)]
        part = self._path.with_suffix(".part")
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(self._lines.values())
        part.replace(self._path)


def _written(run: StudyRun, row: Row) -> list[str]:
    def short(values: Iterable[float], digits: int = 6) -> str:
        return " ".join(f"{value:.{digits}g}" for value in values)

    cells = [run.task, run.rule, f"{run.error_probability:g}", str(run.seed), run.setting, json.dumps(run.values)]
    cells += [row.program, row.outcome]
    if row.outcome == FAILED:
        return cells + [""] * (len(COLUMNS) - 1 - len(cells))
    cells += [row.goal, row.metric.best, row.metric.unit, *(f"{getattr(row, name):.6g}" for name in NUMBERS)]
    cells += [f"{value:.6g}" for value in (*row.gamma, *row.tau)]
    cells += [short(row.bests[0]), short(row.bests[1], 9), short(row.curve[0], 5), short(row.curve[1], 5)]
    return cells


def _read(cells: dict[str, str]) -> Row:
    who = cells["task"], cells["rule"], float(cells["error_probability"]), int(cells["seed"])
    how = json.loads(cells["values"]), cells["program"], cells["outcome"]
    if cells["outcome"] != DONE:
        return Row(*who, *how)
    better = cells["better"]
    if better not in ("max", "min"):
        raise ValueError(f"better is {better!r}, expected max or min")
    metric = Metric("max" if better == "max" else "min", cells["unit"])
    best, final, mean, updates, wall_s, busy, samples = (float(cells[name]) for name in NUMBERS)
    both = np.array([float(cells[name]) for name in QUARTILES])
    bests, curve = (
        np.array([[float(x) for x in cells[name].split()] for name in names])
        for names in (("bests_s", "bests"), ("curve_s", "curve"))
    )
    figures = best, final, mean, updates, wall_s, busy, samples
    row = Row(*who, *how, cells["metric"], metric, *figures)
    return row._replace(gamma=both[:3], tau=both[3:], bests=bests, curve=curve)


def worst_for_failures(rows: list[Row]) -> list[Row]:
    """The rows of one task and error probability, in which a run that failed has the worst values that any run has."""
    done = [row for row in rows if row.outcome == DONE]
    if not done:
        return []
    goal, metric = done[0].goal, done[0].metric
    values = np.concatenate([row.curve[1] for row in done] + [np.array([row.final for row in done])])
    worst = metric.worst_of(values)
    fill = partial(Row._replace, goal=goal, metric=metric, best=worst, final=worst, mean=worst)
    return [row if row.outcome == DONE else fill(row) for row in rows]
