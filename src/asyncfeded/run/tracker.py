"""A tracker of a run: a process that follows the record and gives points away; trackers.py starts one for each sink.

    python -m asyncfeded.run.tracker NAME RUN_DIR AFTER

It is no thread of the server, which would hold the interpreter's lock while an update waits. It looks every LOOK_S seconds,
until its standard input ends, and then once more. What it has to say to the user goes to its standard output, a line for
each sentence; what the tracker's package prints goes to NAME.log in the run's folder.
"""

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asyncfeded.files.plain import parse_toml
from asyncfeded.metric import Metrics
from asyncfeded.run.sinks import About, Sink, open_sink
from asyncfeded.store.follow import Follower, News

LOOK_S = 2.0
MOST = 10
"""Points of updates in a look, each a mean over neighbouring updates."""
STUCK_S = 60.0
"""A sink that takes so long for a point is reported."""


class Point(NamedTuple):
    """What a sink takes; see `sinks.Sink.log`."""

    step: int
    at_s: float
    values: dict[str, float]


class Points:
    """Makes points of rows.

    Args:
        metrics: of the task.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._refused = metrics, 0
        self._began = (0.0, 0.0)  # Unix time and time on the run's clock of the first job

    def of(self, news: News, most: int) -> Iterator[Point]:
        """The points of new rows, in order of their steps: at most so many of updates, and all evaluations."""
        if news.anew:
            self._refused = 0
            for event in news.events[news.events["kind"] == b"began"][:1]:
                self._began = float(event["at_s"]), float(event["time_s"])
        found = [self._of_updates(rows) for rows in np.array_split(news.updates, min(most, len(news.updates)) or 1)]
        found += [self._of_evaluation(row) for row in news.evaluations]
        yield from sorted((point for point in found if point.values), key=lambda point: point.step)

    def _of_updates(self, rows: np.ndarray) -> Point:
        self._refused += int((~rows["accepted"]).sum())
        good = rows[rows["accepted"]]
        if not len(good):
            return Point(0, 0.0, {})
        span = float(good["time_s"][-1] - good["time_s"][0])
        values = {
            "train/loss": _mean(good["train_loss"]),
            "update/gamma": _mean(good["gamma"]),
            "update/eta": _mean(good["eta"]),
            "update/tau": _mean(good["tau"]),
            "update/K": _mean(good["epochs"]),
            "client/compute_s": _mean(good["compute_s"]),
            "client/wait_s": _mean(good["wait_s"]),
            "server/queue": _mean(good["queue"]),
            "server/service_s": _mean(good["service_s"]),
            "server/refused": float(self._refused),
            "server/updates_per_s": (len(good) - 1) / span if span > 0 else np.nan,
            "time_s": float(good["time_s"][-1]),
        }
        finite = {name: value for name, value in values.items() if np.isfinite(value)}
        return Point(int(good["version"][-1]), self._at(float(good["time_s"][-1])), finite)

    def _of_evaluation(self, row: np.void) -> Point:
        values = {f"test/{name}": float(row[name]) for name in self._metrics.by_name}
        finite = {name: value for name, value in values.items() if np.isfinite(value)}
        return Point(int(row["version"]), self._at(float(row["time_s"])), finite)

    def _at(self, time_s: float) -> float:
        at_s, began_s = self._began
        return at_s + time_s - began_s


def hyperparameters(config: str) -> dict[str, int | float | str | bool]:
    """The config, TOML, by `section.key`; lists as text."""
    found: dict[str, int | float | str | bool] = {}

    def enter(table: dict[str, Any], prefix: str) -> None:
        for key, value in table.items():
            if isinstance(value, dict):
                enter(value, f"{prefix}{key}.")
            else:
                found[prefix + key] = value if isinstance(value, int | float | str | bool) else str(value)

    enter(parse_toml(config, "record.h5: config"), "")
    return found


def about(run_dir: Path, follower: Follower, news: News, after: int) -> About:
    """What a sink is told, from the first rows of a record."""
    began = news.events["at_s"][news.events["kind"] == b"began"]
    first = float(began[0]) if len(began) else 0.0
    return About(run_dir, hyperparameters(str(follower.attributes["config"])), after, first)


def follow(name: str, run_dir: Path, after: int, until: Callable[[float], bool], say: Callable[[str], None]) -> None:
    """Give the points of a run away until its end.

    Args:
        name: of the sink.
        run_dir: folder of the run.
        after: step behind which points are given away.
        until: waits so many seconds; returns whether the run has ended.
        say: shows a sentence to the user.

    Raises:
        Exception: whatever the sink raises when it is opened or closed.
    """
    with Follower(run_dir) as follower:
        points, sink, told, ended = Points(follower.metrics), None, _Once(name, say), False
        while True:
            for news in follower.news():
                if sink is None:
                    with told.if_stuck():
                        sink = open_sink(name, about(run_dir, follower, news, after))
                for point in points.of(news, MOST):
                    if point.step > after:
                        _give(sink, point, told)
            if ended:
                break
            ended = until(LOOK_S)
        assert sink
        sink.close()


class _Once:
    """Tells a user once that a sink takes no points."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self._name, self._say, self._told = name, say, False

    def __call__(self, why: str) -> None:
        if not self._told:
            self._told = True
            self._say(f"{self._name}: takes no points ({why}); they are lost, and the run goes on")

    @contextmanager
    def if_stuck(self) -> Iterator[None]:
        """Tell it if this takes more than STUCK_S seconds."""
        timer = threading.Timer(STUCK_S, self, [f"nothing for {STUCK_S:.0f} s"])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def _give(sink: Sink, point: Point, told: _Once) -> None:
    """Give one point away; what a sink does not take is lost."""
    with told.if_stuck():
        try:
            sink.log(*point)
        except Exception as error:
            told(f"{type(error).__name__}: {_first_line(error)}")


def main() -> None:
    """The process of one tracker."""
    name, folder, after = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # they are for the run, whose end is the end of standard input
    told = os.fdopen(os.dup(1), "w", buffering=1)
    log = os.open(Path(folder) / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)

    def say(text: str) -> None:
        with suppress(OSError):
            print(text, file=told, flush=True)

    def until(seconds: float) -> bool:
        return bool(select.select([0], [], [], seconds)[0])

    try:
        follow(name, Path(folder), int(after), until, say)
    except Exception as error:
        say(f"{name}: {type(error).__name__}: {_first_line(error)}; its points are lost, and the run goes on")
        raise


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else np.nan


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


if __name__ == "__main__":
    main()
