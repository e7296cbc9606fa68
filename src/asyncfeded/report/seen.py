"""A run as its folder shows it: record, config and result, whatever of them there is."""

import math
import os
import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from asyncfeded.files.plain import parse_toml, read_json
from asyncfeded.metric import Metric, Metrics
from asyncfeded.report.events import moment
from asyncfeded.store import checkpoint, ownership, record

SIGN_S = 120.0
"""Who owns a folder and has given no sign for so long is dead."""


class Seen:
    """A run.

    Args:
        run_dir: its folder.
        name: what the report calls it.
        key: an id for the page.

    Attributes:
        updates: record.UPDATE (n,), all rows.
        merged: record.UPDATE (m,), the rows of merged updates.
        evaluations: (k,), see record.dtypes.
        tests: (l,), the tests of the clients on their own data.
        metrics: those of the task.
        clients: heterogeneity.PROFILE (clients,).
        places: placement.PLACE (ranks,).
        about: versions, commit and platform.
        goes_on: whether the run goes on, or was cut off; otherwise it has ended.
        alive: whether it goes on.
        result: the figures of its end; empty if it has not ended.
        events: record.EVENT (e,).

    Raises:
        ValueError: the folder holds no run, or what it holds is damaged.
    """

    def __init__(self, run_dir: Path, name: str, key: str) -> None:
        self.path, self.name, self.key = run_dir, name, key
        self.goes_on = any(file.exists() for file in record.row_files(run_dir))
        tables = record.read_record(run_dir)
        self.updates, self.evaluations, self.tests = tables.updates, tables.evaluations, tables.client_evaluations
        self.merged = self.updates[self.updates["accepted"]]
        self.metrics: Metrics = tables.metrics
        self.about: dict[str, Any] = tables.attributes
        self.clients, self.places = np.asarray(self.about["clients"]), np.asarray(self.about["placement"])
        self.config: dict[str, Any] = parse_toml(str(self.about["config"]), f"{run_dir / 'record.h5'}: config")
        self.alive = self.goes_on and self._has_owner()
        path = run_dir / "result.json"
        ended = read_json(path) if path.exists() and not self.goes_on else {}
        self.result: dict[str, Any] = ended if isinstance(ended, dict) else {}
        self.events = tables.events

    def _has_owner(self) -> bool:
        """Exact where the owner runs under this kernel; elsewhere by its last sign, and the clocks of hosts differ."""
        path = self.path / ownership.NAME
        with suppress(OSError):
            return ownership.Watched(path).is_alive() and time.time() - path.stat().st_mtime < SIGN_S
        return False

    @property
    def goal(self) -> Metric:
        """The metric of the goal."""
        return self.metrics.of_goal

    @cached_property
    def counts(self) -> np.ndarray:
        """int64 (clients,), merged updates of each."""
        return np.bincount(self.merged["client"], minlength=len(self.clients))

    @cached_property
    def refusals(self) -> np.ndarray:
        """int64 (clients,), refused updates of each."""
        return np.bincount(self.updates["client"][~self.updates["accepted"]], minlength=len(self.clients))

    @property
    def clock(self) -> str:
        """The clock of the run: wall, virtual or replay."""
        return str(self.config.get("clock", "wall"))

    @property
    def time_label(self) -> str:
        """The name of an axis of time."""
        return "seconds of the recorded run" if self.clock == "replay" else f"seconds of the {self.clock} clock"

    @cached_property
    def seconds(self) -> float:
        """How long the run is so far, on its clock."""
        if isinstance(told := self.result.get("seconds"), int | float):
            return float(told)
        times = np.concatenate([self.updates["time_s"], self.evaluations["time_s"]])
        return float(times.max(initial=0.0))

    @property
    def wall_s(self) -> float:
        """How long it is by the wall clock, in seconds; NaN while that is not known."""
        told = self.result.get("wall_s")
        return float(told) if isinstance(told, int | float) else self.seconds if self.clock == "wall" else math.nan

    @property
    def resumed_s(self) -> list[float]:
        """When it went on from a checkpoint, in seconds of its clock."""
        jobs = self.events[(self.events["kind"] == b"began") & (self.events["text"] != b"")]
        return [float(f"{at:.7g}") for at in jobs["time_s"].tolist()]

    def named(self, section: str) -> str:
        """The name of the task or of the rule."""
        part = self.config.get(section)
        return str(part.get("name", "unknown")) if isinstance(part, dict) else "unknown"

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints that are kept, oldest first."""
        return checkpoint.checkpoints(self.path / checkpoint.FOLDER)

    @property
    def maker(self) -> str:
        """Who the record belongs to."""
        path = self.path / "record.h5"
        try:
            return path.owner()
        except (KeyError, OSError):
            return f"user {path.stat().st_uid}" if path.exists() else ""

    @property
    def state(self) -> tuple[str, str]:
        """What became of the run: a word, and a sentence."""
        if self.alive:
            return "goes on", "The run goes on; this is what its record held when the report was made."
        if self.goes_on:
            return "cut off", (
                "The run was cut off: it has no end. The record has its rows up to the last ones that were written; "
                "if it has a checkpoint, asyncfeded resume continues it."
            )
        stopped = str(self.result.get("stopped", ""))
        if not self.result:
            return "no result", "The run's folder has no result.json; the figures are those of its record."
        if stopped.startswith("interrupted"):
            return "interrupted", "A signal ended the run; asyncfeded resume continues it."
        if "no client is left" in stopped or "died" in stopped:
            return "failed", f"The run failed: {stopped}."
        return "finished", f"It stopped since {stopped}."

    @property
    def began(self) -> str:
        """When its first job began."""
        return moment(self.events["at_s"].min()) if len(self.events) else ""

    @property
    def last_sign(self) -> str:
        """When it wrote last."""
        return moment(
            max(file.stat().st_mtime for file in (self.path / "record.h5", *record.row_files(self.path)) if file.exists())
        )

    @property
    def origin(self) -> str:
        """The commit or the version of the program."""
        version, commit = str(self.about.get("asyncfeded", "unknown")), str(self.about.get("commit", ""))
        changed = ", changed since" * commit.endswith("+")
        return version + f", commit {commit.rstrip('+')[:12]}{changed}" * bool(commit)

    @property
    def hosts(self) -> list[str]:
        """The hosts of the run."""
        return sorted({os.fsdecode(host) for host in self.places["host"].tolist()})
