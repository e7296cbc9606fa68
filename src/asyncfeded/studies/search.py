"""The search for the values of a rule on a task: random trials, successive halving, and ranges that go on beyond an end.

What comes next follows from the file and from the rows that are there, and from nothing else, so that a search goes on
wherever it was stopped. Every rule has the same number of trials, unless its best lies at an end.
"""

import zlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from asyncfeded.studies import jobs
from asyncfeded.studies.ranges import Range, draw
from asyncfeded.studies.rows import Row
from asyncfeded.studies.study import StudyGrid, StudyRun, tried, tuning_run


class Search(NamedTuple):
    """How far the search for a rule on a task has come."""

    task: str
    rule: str
    missing: list[StudyRun]
    """The runs to do next; empty: the search is at its end."""
    round: int
    """Their round of halving, from 0."""
    values: dict[str, Any]
    """The best values, by key; empty while the search goes on, or if all trials failed."""
    trials: int
    """Values that were tried."""
    ranges: dict[str, str]
    """By key, what was tried, as text; with what was added to it."""
    at_end: tuple[str, ...]
    """Keys whose best value lies at an end that was not extended any more."""


def search(grid: StudyGrid, task: str, rule: str, rows: Mapping[str, Row]) -> Search:
    """Where the search stands. `rows` holds the runs that have ended, by name."""
    tuning, tune = grid.tuning, tried(grid, task, rule)
    told = {key: _text(one) for key, one in tune.items()}
    rng = np.random.default_rng([tuning.seed, *(zlib.crc32(label.encode()) for label in (task, rule))])
    drawn = [draw(tune, rng) for _ in range(tuning.trials)]
    finals: list[tuple[float, dict[str, Any]]] = []
    trials, best, left = 0, {}, []
    for extension in range(tuning.extensions + 1):
        trials += len(drawn)
        scored: list[tuple[float, dict[str, Any]]] = []
        for round_ in range(tuning.rounds):
            if round_:
                drawn = [values for _, values in scored[: -(-len(scored) // tuning.halving)]]
            runs = [tuning_run(grid, task, rule, values, round_) for values in drawn]
            if missing := [run for run in runs if run.name not in rows]:
                return Search(task, rule, missing, round_, {}, trials, told, ())
            scores = [_cost(rows[run.name]) for run in runs]
            scored = sorted(zip(scores, drawn, strict=True), key=lambda one: one[0])
        finals = sorted([*finals, *scored], key=lambda one: one[0])
        if finals[0][0] == np.inf:
            return Search(task, rule, [], 0, {}, trials, told, ())
        best = finals[0][1]
        ends = {key: one.end(best[key]) for key, one in tune.items() if isinstance(one, Range)}
        left = [key for key, end in ends.items() if end]
        if extension == tuning.extensions:
            break
        beyond = {key: more for key in left if (more := _beyond(grid, task, rule, tune, best, key, ends[key]))}
        if not beyond:
            break
        for key, more in beyond.items():
            told[key] += f", then {_text(more)}"
        only = {key: beyond.get(key, one) for key, one in tune.items()}
        drawn = [draw(only, rng) for _ in range(-(-tuning.trials // tuning.halving))]
        tune = {key: _joined(one, beyond[key]) if key in beyond else one for key, one in tune.items()}
    return Search(task, rule, [], 0, best, trials, told, tuple(left))


def _cost(row: Row) -> float:
    """What tuning makes small: the mean of the metric over the run, turned so that less is better."""
    if not np.isfinite(row.mean):
        return np.inf
    return -row.mean if row.metric.best == "max" else row.mean


def _beyond(
    grid: StudyGrid,
    task: str,
    rule: str,
    tune: dict[str, Any],
    best: dict[str, Any],
    key: str,
    end: Literal["", "from", "to"],
) -> Range | None:
    """The range beyond an end; None if the config does not allow its values, as a weight above 1."""
    assert end
    try:
        more: Range = tune[key].beyond(end)
        far = more.from_ if end == "from" else more.to
        tuning_run(grid, task, rule, {**best, key: far}, 0)
    except ValueError:
        return None
    return more


def _joined(one: Any, more: Range) -> Range:  # noqa: ANN401, a range too
    ends = {"from": min(one.from_, more.from_), "to": max(one.to, more.to), "scale": one.scale}
    return Range.model_validate(ends)


def _text(one: Any) -> str:  # noqa: ANN401, a range or a list
    return f"{one.from_:g} to {one.to:g}" if isinstance(one, Range) else ", ".join(map(str, one))


def as_toml_table(searches: list[Search]) -> dict[str, Any]:
    """The best values of each rule, as the `on` of a grid's file."""
    on: dict[str, dict[str, Any]] = {}
    for found in searches:
        if found.values:
            on.setdefault(found.rule, {})[found.task] = jobs.nest(found.values)
    return {"rules": {rule: {"on": by_task} for rule, by_task in on.items()}}
