"""Scaling studies: the same training with more and more clients, one table, and a model that predicts larger numbers.

`grid` is the schema of the file and the runs that it makes, `slurm` submits them, `table` measures those that are done,
`queueing`, `simulation` and `prediction` predict the behaviour of more clients, `servers` how many server ranks they need.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from asyncfeded.studies import jobs
from asyncfeded.studies.scaling import grid, prediction, servers, slurm, table


class Report(NamedTuple):
    """The results of the finished runs of a study."""

    rows: list[table.ScalingRow]
    comparisons: list[table.Speedup]
    predictions: list[prediction.Prediction]


class Study:
    """A scaling study in its folder.

    Args:
        file: TOML file of the grid.
        overrides: `section.key=value`, applied to the file.
        out: folder of the study.
        say: shows a line about progress.

    Raises:
        ValueError: the grid is wrong.
    """

    def __init__(self, file: Path, overrides: Sequence[str], out: Path, say: Callable[[str], None]) -> None:
        self._file, self._overrides, self._out, self._say = file, overrides, out, say
        self.grid = grid.load_scaling_grid(file, overrides)
        self.runs = list(grid.expand(self.grid))

    def submit(self, options: str) -> None:
        """Submit the missing runs as Slurm arrays, with these options for sbatch. Raises ValueError if it refuses."""
        sentences = slurm.submit(self.runs, self._file, self._out, self._overrides, options)
        for sentence in sentences:
            self._say(sentence)
        self._say(
            f"{'when they are done' if sentences else 'all runs are done'}: --gather instead of --slurm makes the tables"
        )

    def execute(self, only: int | None) -> list[str]:
        """Do the missing runs, one at a time. Returns the names of those that failed.

        Args:
            only: index of the only run to do; None: all.

        Raises:
            ValueError: there is no such run, or it needs more nodes than the allocation has.
        """
        if only is not None and not 0 <= only < len(self.runs):
            raise ValueError(f"--only {only}: the grid makes {len(self.runs)} runs, 0 to {len(self.runs) - 1}")
        runs = self.runs if only is None else [self.runs[only]]
        available = slurm.nodes_here()
        if large := [run for run in runs if run.nodes > available]:
            raise ValueError(
                f"{large[0].name} needs {large[0].nodes} nodes of {large[0].ranks_per_node} ranks, and here is {available}; "
                f"submit with --slurm, or set ranks_per_node=[0]"
            )
        return [job.name for job in jobs.execute([run.job for run in runs], self._out / "runs", 1, self._say)]

    def report(self, predict: bool) -> Report:
        """Write tables of the finished runs into the folder and to standard output; report which runs are missing.

        Args:
            predict: whether to predict more clients too.

        Raises:
            ValueError: no run is done.
        """
        rows = table.collect(self.grid, self.runs, self._out)
        done = {row.run.name for row in rows}
        missing = {run.name: index for index, run in enumerate(self.runs) if run.name not in done}
        for name, index in missing.items():
            self._say(f"missing: {name} (--only {index})")
        if not rows:
            raise ValueError(f"{self._out}: none of the {len(missing)} runs of the grid is done")
        table.write_csv(self.grid, rows, self._out)
        text = table.to_markdown(self.grid, rows)
        predictions = prediction.predict(self.grid, rows, self._say) if predict else []
        if predictions:
            prediction.write_csv(predictions, self._out / "prediction.csv")
            text += "\n" + prediction.to_markdown(predictions)
        if answers := servers.answer(self.grid, rows) if predict else []:
            servers.write_csv(answers, self._out / "servers.csv")
            text += "\n" + servers.to_markdown(answers)
        (self._out / "table.md").write_text(text, encoding="utf-8")
        print(text)  # noqa: T201
        return Report(rows, table.compare(self.grid, rows), predictions)
