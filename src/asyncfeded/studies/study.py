"""A study: a grid of runs (tasks x rules x error probabilities x seeds), and the runs of the search for a rule's values.

`StudyGrid` is the schema of the file. This room makes the runs of it; perform.py does them, and tables.py compares them.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator

from asyncfeded.config import Config, Count, Settings, load_section
from asyncfeded.model.flat import Entry, Layout
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules import contract, load_rule
from asyncfeded.studies import jobs
from asyncfeded.studies.ranges import Tried
from asyncfeded.training.heterogeneity import draw

Setting = Literal["given", "untuned", "tuned"]


class TaskOfGrid(Settings):
    """One task of the grid."""

    run: dict[str, Any]
    """The part of a run's config that belongs to the task."""
    targets: tuple[float, ...] = Field(min_length=1)
    """Values of the task's metric (evaluation.metric); the time to reach each is measured, and rules are ranked by the time
    to the last."""
    error_probabilities: tuple[float, ...] = ()
    """heterogeneity.error_probability of the runs on this task. Empty: those of the grid."""
    tune: dict[str, Tried] = Field(default_factory=dict)
    """What tuning tries for every rule on this task, by key (section.key), such as a learning rate: a range, {from = 0.01,
    to = 1.0}, or a list of values."""


class RuleOfGrid(Settings):
    """One rule of the grid."""

    run: dict[str, Any]
    """The part of a run's config that belongs to the rule."""
    on: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """By task: the values that differ on that task, in the setting `given`."""
    tune: dict[str, Tried] = Field(default_factory=dict)
    """What tuning tries besides what the task lists, by key (section.key)."""


class Untuned(Settings):
    """The setting `untuned`."""

    run: dict[str, Any] = Field(default_factory=dict)
    """The part of the config that all its runs share, on all tasks, such as one learning rate."""


class Tuning(Settings):
    """How the setting `tuned` finds the values of each rule on each task: a random search with successive halving.

    `trials` values are drawn. Each is tried for a part of the time, the better ones for `halving` times as long, and so on,
    until in the last of the `rounds` the best are tried for the whole time. The best one has the best mean of the metric
    over its run, so that both speed and final value count. Where it lies at an end of a range, the range goes on beyond
    that end, and `trials` / `halving` more values are drawn there.
    """

    seed: int = 1000
    """Seed of the search and of its runs; must not be among the seeds of the results."""
    trials: Count = 24
    """Values drawn for each rule and task."""
    halving: int = Field(3, ge=2)
    """One in so many trials goes on to the next round, for so many times as long."""
    rounds: Count = 3
    """Rounds of halving. 1: every trial has the whole time."""
    share: float = Field(1.0, gt=0, le=1)
    """Part of the time of a run of the results that a trial has in the last round."""
    extensions: int = Field(2, ge=0)
    """How often ranges may go on beyond an end. 0: never."""
    error_probability: float = 0.1
    """Error probability of the tuning runs."""
    run: dict[str, Any] = Field(default_factory=dict)
    """The part of the config in which tuning runs differ from the runs of the results, such as fewer seconds."""


class StudyGrid(Settings):
    """A study: every task with every rule, error probability and seed, in one or several settings."""

    run: dict[str, Any]
    """Config that all runs share."""
    tasks: jobs.Labelled[TaskOfGrid]
    """By label, which names files: letters, digits, spaces and . + = , @ _ -."""
    rules: jobs.Labelled[RuleOfGrid]
    """Rules by label. The others are compared with the first."""
    settings: tuple[Setting, ...] = Field(("given",), min_length=1)
    """A table for each: given (values of `on`), untuned (the defaults of each rule) or tuned (a search for each rule)."""
    error_probabilities: tuple[float, ...] = Field(min_length=1)
    """heterogeneity.error_probability of the runs."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Seeds of the runs; they determine data, initial model and errors."""
    untuned: Untuned = Untuned()
    tuning: Tuning = Tuning()
    keep: Literal["runs", "rows"] = "runs"
    """What stays of a run: its folder, or its line in rows.csv alone."""
    caption: str = ""
    """Text above the tables, for example what was made smaller than in the source."""

    @model_validator(mode="after")
    def _consistent(self) -> "StudyGrid":
        if self.tuning.seed in self.seeds:
            raise ValueError(f"tuning.seed = {self.tuning.seed} is among the seeds of the results; choose another")
        for label, plan in self.rules.items():
            if unknown := set(plan.on) - set(self.tasks):
                raise ValueError(f"rules.{label}.on names {', '.join(sorted(unknown))}, which is not among the tasks")
            for task, on in self.tasks.items():
                if "tuned" in self.settings and not (plan.tune or on.tune):
                    raise ValueError(f"nothing is tuned for {label} on {task}: give rules.{label}.tune or tasks.{task}.tune")
        return self


class StudyRun(NamedTuple):
    """One run of a study."""

    setting: str
    """A `Setting`, or `tuning` for a run of the search."""
    task: str
    rule: str
    error_probability: float
    seed: int
    config: Config
    values: dict[str, Any]
    """The values that tuning tries or has found, by key."""

    @property
    def name(self) -> str:
        """Name of its folder; ends with the hash of its config."""
        return f"{self.task}-{self.rule}-p{self.error_probability:g}-s{self.seed}-{jobs.digest(self.config)[:8]}"


def load_study_grid(path: Path, overrides: Sequence[str] = ()) -> StudyGrid:
    """Read a grid and check it, with the config of every run of it that is known before it is tuned.

    Args:
        path: a TOML file.
        overrides: `section.key=value`, as for a run.

    Raises:
        ValueError: a key or a value is wrong.
    """
    grid = load_section(StudyGrid, path, overrides)
    for setting in grid.settings:
        for task, rule in itertools.product(grid.tasks, grid.rules):
            for values in _corners(grid, task, rule) if setting == "tuned" else ({},):
                tuning = setting == "tuned"
                one = tuning_run(grid, task, rule, values, 0) if tuning else next(expand(grid, setting, {}, [task], [rule]))
                _try_first_round(one)
    return grid


def _try_first_round(run: StudyRun) -> None:
    """Whether the rule allows the K of the clients' first rounds. Raises ValueError if not."""
    config, clients = run.config, max(run.config.clients, 1)  # 0: as many as there are workers
    epochs = draw(config, np.ones(clients, np.int64)).clients["epochs"].astype(np.int64)
    model = GlobalModel(torch.zeros(1), Layout((Entry("w", (1,), 0),), 1, 1), clients)
    try:
        contract.init(load_rule(config.rule), model, epochs)
    except contract.RuleError as error:
        raise ValueError(f"{run.rule} on {run.task}: {error}") from None


def _corners(grid: StudyGrid, task: str, rule: str) -> Iterator[dict[str, Any]]:
    """Values at the ends of what tuning tries: all least ones, and all greatest ones; every value of a list."""
    tune = tried(grid, task, rule)
    for end in ("from_", "to"):
        yield {key: one[0] if isinstance(one, list) else getattr(one, end) for key, one in tune.items()}
    least = {key: one[0] if isinstance(one, list) else one.from_ for key, one in tune.items()}
    for key, one in tune.items():
        yield from ({**least, key: value} for value in (one if isinstance(one, list) else ()))


def tried(grid: StudyGrid, task: str, rule: str) -> dict[str, Tried]:
    """What tuning tries for a rule on a task; the rule's own prevail."""
    return grid.tasks[task].tune | grid.rules[rule].tune


def expand(
    grid: StudyGrid,
    setting: Setting,
    chosen: dict[tuple[str, str], dict[str, Any]],
    tasks: Sequence[str] = (),
    rules: Sequence[str] = (),
) -> Iterator[StudyRun]:
    """The runs of a setting, one seed after the other.

    Args:
        grid: the study.
        setting: which values the rules have.
        chosen: by task and rule, the values that tuning has found; a pair without them has no run in `tuned`.
        tasks: only these; empty: all.
        rules: only these; empty: all.
    """
    for seed, task in itertools.product(grid.seeds, tasks or grid.tasks):
        plan = grid.tasks[task]
        for p, rule in itertools.product(plan.error_probabilities or grid.error_probabilities, rules or grid.rules):
            layer: dict[str, Any] = {}
            values: dict[str, Any] = {}
            if setting == "given":
                layer = grid.rules[rule].on.get(task, {})
            elif setting == "untuned":
                layer = grid.untuned.run
            elif (task, rule) not in chosen:
                continue
            else:
                values = chosen[task, rule]
                layer = jobs.nest(values)
            yield _run(grid, setting, task, rule, p, seed, values, [layer])


def tuning_run(grid: StudyGrid, task: str, rule: str, values: dict[str, Any], round_: int) -> StudyRun:
    """A trial of values, in a round of halving, counted from 0: the earlier, the shorter."""
    tuning = grid.tuning
    layers = [tuning.run, jobs.nest(values)]
    whole = _run(grid, "tuning", task, rule, tuning.error_probability, tuning.seed, values, layers)
    share = tuning.share * tuning.halving ** (round_ + 1 - tuning.rounds)
    limits = whole.config.limits
    short = {"limits": {"seconds": limits.seconds * share, "updates": round(limits.updates * share)}}
    return _run(grid, "tuning", task, rule, tuning.error_probability, tuning.seed, values, [*layers, short])


def _run(
    grid: StudyGrid,
    setting: str,
    task: str,
    rule: str,
    p: float,
    seed: int,
    values: dict[str, Any],
    layers: Sequence[dict[str, Any]],
) -> StudyRun:
    errors = {"seed": seed, "heterogeneity": {"error_probability": p}}
    below = (grid.run, grid.tasks[task].run, grid.rules[rule].run)
    config = jobs.compose((*below, *layers, errors), f"{task} with {rule}")
    return StudyRun(setting, task, rule, p, seed, config, values)
