"""What is known of a run that goes on. It grows with the rows that come: a look costs as much as these, and the clients."""

import math
import time
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np

from asyncfeded.config import Config, section
from asyncfeded.files.plain import parse_toml
from asyncfeded.store.follow import Follower, News
from asyncfeded.store.record import UPDATE
from asyncfeded.watch.clients import Clients

RECENT = 256
"""Updates that the medians of now are taken from."""
PACE_S = 30.0
"""Seconds of the watcher over which rates are measured."""
SECONDS = {"wall": "real", "virtual": "simulated", "replay": "as recorded"}
"""What the seconds of a run's clock are, by `clock`."""


class State:
    """A run, as its record tells it so far.

    Args:
        follower: of its record.

    Attributes:
        config: of the run, as far as this version of the program has its keys.
        clients: a row for each client.
        phase: running, silent (its job is dead, or its host is) or ended.
        time_s: on the run's clock, now.
        updates: merged so far.
        refused: refused so far.
        recent: record.UPDATE, the newest rows.
        said: the sentences of the newest events.
    """

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._begin()

    def _begin(self) -> None:
        about = self._follower.attributes
        self.config = section(Config, parse_toml(str(about["config"]), "record.h5: config"), "record.h5: config")
        self.metrics = self._follower.metrics
        self.clients = Clients(len(np.asarray(about["clients"])))
        self.phase, self.time_s, self.updates, self.refused = "running", 0.0, 0, 0
        self.recent, self.said = np.zeros(0, UPDATE), deque[str](maxlen=4)
        self.score: np.void | None = None
        self._last: dict[bytes, np.void] = {}  # by kind: the newest event
        self._known_s, self._known_at = 0.0, time.monotonic()  # time on the run's clock, and when it was heard of
        self._pace: deque[tuple[float, int, float]] = deque()  # (watcher's seconds, updates, time_s)

    @property
    def is_wall(self) -> bool:
        """Whether the run's clock shows real seconds."""
        return self.config.clock == "wall"

    def look(self) -> None:
        """Take what is new. Raises ValueError if the record is damaged."""
        with suppress(OSError):  # a file server may be away for a while
            for news in self._follower.news():
                if news.anew:
                    self._begin()
                self._take(news)
        self.phase = "ended" if self._follower.ended else "running" if self._follower.is_alive else "silent"
        now = time.monotonic()
        if self.phase != "running":
            self._pace.clear()  # rates are those of a job
        going = self.is_wall and self.phase == "running"
        self.time_s = self._known_s + (now - self._known_at if going else 0.0)
        self._pace.append((now, self.updates, self.time_s))
        while now - self._pace[0][0] > PACE_S and len(self._pace) > 2:
            self._pace.popleft()

    def _take(self, news: News) -> None:
        rows = news.updates
        if len(rows):
            self.clients.take(rows)
            merged = int(rows["accepted"].sum())
            self.updates += merged
            self.refused += len(rows) - merged
            self.recent = np.concatenate([self.recent, rows[-RECENT:]])[-RECENT:]
        if len(news.evaluations):
            self.score = news.evaluations[-1]
        for event in news.events:
            kind = bytes(event["kind"])
            self._last[kind] = event
            self.clients.event(kind, int(event["client"]))
            if kind not in (b"evaluated", b"checkpoint", b"began"):
                self.said.append(event["text"].decode(errors="replace"))
        times = [float(table["time_s"].max()) for table in (rows, news.evaluations) if len(table)]
        if times and max(times) > self._known_s:
            self._known_s, self._known_at = max(times), time.monotonic()

    def rates(self) -> tuple[float, float]:
        """Updates, and seconds of the run's clock, per real second; NaN while unknown."""
        (began, updates, time_s), (now, newest, newest_s) = self._pace[0], self._pace[-1]
        if now - began >= 1 and self.phase == "running":
            return (newest - updates) / (now - began), (newest_s - time_s) / (now - began)
        if self.is_wall and self.time_s > 0:
            return self.updates / self.time_s, 1.0
        return math.nan, math.nan

    def limits(self) -> dict[str, tuple[float, float]]:
        """By name: what is reached, and the limit. A target has the value of the goal, NaN before the first test."""
        limits, goal = self.config.limits, self.metrics.goal
        value = float(self.score[goal]) if self.score is not None else math.nan
        all_limits = {
            "updates": (self.updates, limits.updates),
            "seconds": (self.time_s, limits.seconds),
            f"target {goal}": (value, limits.target),
        }
        return {name: pair for name, pair in all_limits.items() if pair[1]}

    def left_s(self) -> float:
        """Real seconds until the first limit of updates or seconds, at the present rates; NaN while unknown."""
        by_updates, by_seconds = self.rates()
        limits, left = self.limits(), []
        for name, rate in (("updates", by_updates), ("seconds", by_seconds)):
            if name in limits and rate > 0:
                left.append(max(limits[name][1] - limits[name][0], 0.0) / rate)
        return min(left, default=math.nan)

    def busy(self) -> float:
        """Part of the time in which the server was at updates lately, receiving left out; NaN unless the clock is real."""
        if len(self.recent) < 2 or not self.is_wall:
            return math.nan
        span = float(self.recent["time_s"][-1] - self.recent["time_s"][0])
        return float(self.recent["service_s"][1:].sum()) / span if span > 0 else math.nan

    def last(self, kind: bytes) -> dict[str, Any] | None:
        """The newest event of a kind: `seconds`, `text`, and `age_s` by the clock of this host; None: there is none."""
        if (event := self._last.get(kind)) is None:
            return None
        text, age = event["text"].decode(errors="replace"), max(time.time() - float(event["at_s"]), 0.0)
        return {"text": text, "seconds": float(event["seconds"]), "age_s": round(age, 1)}

    def figures(self) -> dict[str, Any]:
        """All of it for a program, as JSON takes it: no value is NaN or infinite, None stands in its place."""
        recent, clients = self.recent[self.recent["accepted"]], self.clients
        columns = {
            "client": np.arange(clients.count),
            "K": clients.K,
            "updates": clients.updates,
            "share": clients.share(),
            "gamma": clients.gamma,
            "eta": clients.eta,
            "loss": clients.loss,
            "compute_s": clients.compute_s,
            "wait_s": clients.wait_s,
            "round_s": clients.round_s,
            "last_seen_s": clients.seen_s,
            "refused": clients.refused,
            "lost": clients.lost,
            "dropped": clients.dropped,
        }
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        score = self.score
        found = {
            "run_dir": self.config.run_dir,
            "phase": self.phase,
            "clock": self.config.clock,
            "seconds_are": SECONDS[self.config.clock],
            "time_s": self.time_s,
            "updates": self.updates,
            "updates_per_real_s": self.rates()[0],
            "limits": {name: {"value": value, "limit": limit} for name, (value, limit) in self.limits().items()},
            "real_s_left": self.left_s(),
            "metrics": {name: float(score[name]) for name in self.metrics.by_name} if score is not None else None,
            "tested_version": int(score["version"]) if score is not None else None,
            "medians": {name: median(recent[name]) for name in ("gamma", "eta", "tau", "epochs", "service_s")},
            "server_busy": self.busy(),
            "queue": float(self.recent["queue"].mean()) if len(self.recent) else math.nan,
            "evaluation": self.last(b"evaluated"),
            "checkpoint": self.last(b"checkpoint"),
            "refused": self.refused,
            "lost": int(clients.lost.sum()),
            "dropped": int(clients.dropped.sum()),
            "clients": [dict(zip(columns, row, strict=True)) for row in rows],
        }
        cleaned: dict[str, Any] = _finite(found)
        return cleaned


def median(values: np.ndarray) -> float:
    """The median of those that are finite; NaN if there are none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan


def _finite(value: Any) -> Any:  # noqa: ANN401, any part of a JSON document
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
