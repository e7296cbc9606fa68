"""Does a study: its untuned runs, the search for each rule, its tuned runs. It may be stopped at any time, and goes on."""

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from asyncfeded.run import folder as run_folder
from asyncfeded.studies import jobs, rows
from asyncfeded.studies.search import Search, search
from asyncfeded.studies.study import StudyGrid, StudyRun, expand

TOGETHER = (24, 8)
"""How many tuning runs a job does one after the other, by their round of halving; in later rounds, as of results, `LONG`."""
LONG = 6
"""How many long runs a job does one after the other."""


class Done(NamedTuple):
    """What there is of a study."""

    runs: dict[str, list[StudyRun]]
    """By setting, the runs of its results that are known so far."""
    rows: dict[str, rows.Row]
    """By name of the run, also those of tuning."""
    searches: list[Search]
    """Of every task and rule, where rules are tuned."""
    missing: int
    """How many known runs have not ended."""
    refused: list[str]
    """Names of runs that could not be done, which the same command tries again."""


class Performance:
    """Does the runs of a study, and keeps their rows.

    Args:
        grid: the study.
        out: its folder.
        ranks: MPI ranks of each run.
        side_by_side: runs at the same time.
        hours: no run begins after so many hours.
        say: shows a line about progress.
    """

    def __init__(
        self, grid: StudyGrid, out: Path, ranks: int, side_by_side: int, hours: float, say: Callable[[str], None]
    ) -> None:
        self._grid, self._folder, self._ranks, self._side_by_side, self._say = grid, out / "runs", ranks, side_by_side, say
        self._folder.mkdir(parents=True, exist_ok=True)  # says that the folder is that of a study
        self._until_s = time.monotonic() + 3600 * hours
        self._book = rows.Book(out / "rows.csv")
        self._samples: dict[str, float] = {}
        self._refused: list[str] = []

    def perform(self) -> Done:
        """Do what is missing, until all is done or it is too late."""
        grid = self._grid
        for setting in grid.settings:
            if setting != "tuned":
                self._do(list(expand(grid, setting, {})))
        searches = self._searches()
        while missing := [run for found in searches for run in found.missing]:
            if not self._do(missing, TOGETHER[min(found.round for found in searches if found.missing) :][:1]):
                break
            searches = self._searches()
        chosen = {(found.task, found.rule): found.values for found in searches if found.values}
        if not any(found.missing for found in searches):
            self._do(list(expand(grid, "tuned", chosen)) if searches else [])
        runs: dict[str, list[StudyRun]] = {one: list(expand(grid, one, chosen)) for one in grid.settings}
        known = [run.name for some in runs.values() for run in some] + [run.name for s in searches for run in s.missing]
        left = sum(name not in self._book.rows for name in known)
        return Done(runs, self._book.rows, searches, left, self._refused)

    def _searches(self) -> list[Search]:
        grid = self._grid
        pairs = itertools.product(grid.tasks, grid.rules) if "tuned" in grid.settings else ()
        return [search(grid, task, rule, self._book.rows) for task, rule in pairs]

    def _do(self, planned: Sequence[StudyRun], together: Sequence[int] = ()) -> bool:
        """Do runs that have no row. Returns whether all have one afterwards."""
        for run in planned:
            if run.name not in self._book.rows and jobs.is_done(self._folder, run.name):
                self._keep(run)
        by_name = {run.name: run for run in planned if run.name not in self._book.rows}
        if by_name and time.monotonic() < self._until_s:
            todo = [jobs.GridJob(name, run.config, self._ranks) for name, run in by_name.items()]

            def tell(job: jobs.GridJob, trouble: str) -> None:
                if not trouble:
                    self._keep(by_name[job.name])
                elif trouble.startswith(jobs.ENDED_ITSELF):
                    self._book.add(by_name[job.name], rows.of_failure(by_name[job.name]))
                else:
                    self._refused.append(job.name)

            size = together[0] if together else LONG
            jobs.execute(todo, self._folder, self._side_by_side, self._say, size, self._until_s, tell)
        return all(run.name in self._book.rows for run in planned)

    def _keep(self, run: StudyRun) -> None:
        """Write the row of a run that is done; remove its folder, if rows alone are to stay."""
        run_dir = self._folder / run.name
        if run.task not in self._samples:
            self._samples[run.task] = rows.test_samples(run)
        self._book.add(run, rows.of_run(run, run_dir, self._samples[run.task]))
        if self._grid.keep == "rows":
            run_folder.clear(run_dir)
            with suppress(OSError):  # a file of somebody else's is in it
                run_dir.rmdir()
