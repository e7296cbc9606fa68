"""The metrics of a task: which way each is better, how its sums become a value, and how it is written down.

A metric of a test is a sum and a count, so that batches of any size add up (training/evaluation.py). Here is what a name
means; the values lie in the record.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

FRACTION = "fraction"
"""The unit of a metric from 0 to 1: figures show it on an axis from 0 to 1, and tables in percent."""
COLUMNS = ("time_s", "version", "client", "round")
"""Columns of the record that stand beside the metrics, and so are no names of metrics."""
NAME = re.compile(r"[^\W\d_][\w.+@-]*")
METRIC = np.dtype([("name", "S64"), ("best", "S3"), ("unit", "S32"), ("goal", np.bool_)])
"""A metric in a file, its texts in UTF-8; `goal`: whether it is the one that limits, tables and figures look at."""


@dataclass(frozen=True)
class Metric:
    """What a task is measured by.

    Args:
        best: whether the largest or the smallest value is the best.
        unit: for tables and figures, at most 32 bytes; "fraction": from 0 to 1.
        finish: is applied to sum / count; `math.exp` makes perplexity of a mean loss. None: that is the value.

    Raises:
        ValueError: one of them is something else.
    """

    best: Literal["max", "min"]
    unit: str = ""
    finish: Callable[[float], float] | None = None

    def __post_init__(self) -> None:
        if self.best not in ("max", "min"):
            raise ValueError(f'Metric(best={self.best!r}): expected "max" or "min"')
        if not isinstance(self.unit, str) or len(self.unit.encode()) > METRIC["unit"].itemsize:
            raise ValueError(f"Metric(unit={self.unit!r}): expected a text of at most {METRIC['unit'].itemsize} bytes")
        if self.finish is not None and not callable(self.finish):
            raise ValueError(f"Metric(finish={self.finish!r}): expected a function of one number, such as math.exp")

    @property
    def is_fraction(self) -> bool:
        """Whether its values lie from 0 to 1."""
        return self.unit == FRACTION

    def value(self, total: float, count: float) -> float:
        """The value of a sum over a count, which may not be finite. Raises whatever `finish` does, except OverflowError."""
        mean = total / count
        if self.finish is None or not math.isfinite(mean):
            return mean
        try:
            return float(self.finish(mean))
        except OverflowError:  # math.exp
            return math.inf

    def reaches(self, values: np.ndarray, target: float) -> np.ndarray:
        """Whether each value is as good as the target; one that is not a number is not."""
        return values >= target if self.best == "max" else values <= target

    def best_of(self, values: np.ndarray) -> float:
        """The best of at least one value, those left out that are not a number."""
        return float((np.fmax if self.best == "max" else np.fmin).reduce(values))

    def worst_of(self, values: np.ndarray) -> float:
        """The worst of at least one value, those left out that are not a number."""
        return float((np.fmin if self.best == "max" else np.fmax).reduce(values))

    def text(self, value: float) -> str:
        """A value for people, with its unit."""
        return f"{value:.4f}" if self.is_fraction else f"{value:.5g} {self.unit}".rstrip()

    def label(self, name: str) -> str:
        """The name and the unit, for an axis or the head of a column."""
        return f"{name} ({self.unit})" if self.unit and not self.is_fraction else name


DEFAULT = {"accuracy": Metric("max", FRACTION), "loss": Metric("min")}
"""The metrics of a task that declares none."""


class Metrics(NamedTuple):
    """The metrics of a run."""

    by_name: dict[str, Metric]
    """In the order of the columns of the record."""
    goal: str
    """Name of the one that limits.target, tables and figures look at."""

    @property
    def of_goal(self) -> Metric:
        """The metric of the goal."""
        return self.by_name[self.goal]

    @property
    def columns(self) -> str:
        """What the values of a record mean, as text: two runs with equal texts have the same metrics."""
        return ", ".join(" ".join(filter(None, (name, one.best, one.unit))) for name, one in self.by_name.items())

    def reached(self, values: Mapping[str, float], target: float) -> str:
        """That the metric of the goal is as good as the target, as a sentence; empty if it is not."""
        if not self.of_goal.reaches(np.asarray(values[self.goal]), target):
            return ""
        return f"{self.goal} {self.of_goal.text(values[self.goal])} was reached (limits.target = {target:g})"

    def rows(self) -> np.ndarray:
        """As METRIC (metrics,), for a file."""
        rows = [(name.encode(), m.best.encode(), m.unit.encode(), name == self.goal) for name, m in self.by_name.items()]
        return np.array(rows, METRIC)

    @classmethod
    def of_rows(cls, rows: np.ndarray, where: str) -> "Metrics":
        """What `rows` has made; no `finish`. Raises ValueError if these are no such rows; `where` names them."""
        try:
            if rows.dtype != METRIC or rows.ndim != 1:
                raise ValueError(f"is {rows.dtype} {rows.shape}, expected a row of {METRIC} for each metric")
            named = {row["name"].decode(): Metric(row["best"].decode(), row["unit"].decode()) for row in rows}
            goals = rows["name"][rows["goal"]]
            if len(named) < len(rows) or len(goals) != 1:
                raise ValueError(f"{len(rows)} metrics have {len(named)} names, and {len(goals)} of them are the goal")
            return cls(check_metrics(named), goals[0].decode())
        except ValueError as error:
            raise ValueError(f"{where}: {error}; this program wrote no such file") from None


def check_metrics(given: object) -> dict[str, Metric]:
    """The metrics that a task declares, by name.

    Raises:
        ValueError: it declares something else, or a name cannot be that of a column of the record.
    """
    if not isinstance(given, Mapping) or not given:
        kind = "none" if isinstance(given, Mapping) else type(given).__name__
        raise ValueError(f'metrics: got {kind}, expected a Metric by name, such as {{"accuracy": Metric("max")}}')
    for name, metric in given.items():
        if not isinstance(name, str) or not NAME.fullmatch(name) or len(name.encode()) > METRIC["name"].itemsize:
            raise ValueError(
                f"metrics: the name {name!r} cannot be a column of the record; expected a letter, and then letters, digits "
                f"and . + @ _ -, in all at most {METRIC['name'].itemsize} bytes"
            )
        if name in COLUMNS:
            raise ValueError(f"metrics: {name} is another column of the record; choose another name")
        if not isinstance(metric, Metric):
            raise ValueError(f'metrics: {name} is {type(metric).__name__}, expected a Metric, such as Metric("min")')
    return dict(given)
