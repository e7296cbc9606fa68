"""`asyncfeded.open`: what a run has left in its folder, as arrays, also while it goes on."""

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from asyncfeded.config import Config, load_config
from asyncfeded.files.plain import read_json
from asyncfeded.files.weights import read_weights, weights_file
from asyncfeded.metric import Metric
from asyncfeded.store import record

if TYPE_CHECKING:
    import pandas

FRAMES = (*record.TABLES, "clients")
"""What `Run.frame` takes."""


class Run:
    """A run, as its folder shows it now. Files are read when they are asked for, and again when they have changed.

    Args:
        path: folder of the run.

    Attributes:
        path: the folder, absolute.

    Every attribute raises ValueError if its file is missing, damaged, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._seen: object = None
        self._tables: record.Tables | None = None

    def __repr__(self) -> str:
        return f"Run({os.path.relpath(self.path)!r})"

    @property
    def config(self) -> Config:
        """The config, with every default filled in."""
        return load_config(self.path / "config.toml", [])

    @property
    def updates(self) -> np.ndarray:
        """One row per update: record.UPDATE (n,), fields such as `time_s`, `client`, `gamma`, `eta`, `epochs` (K)."""
        return self._record.updates

    @property
    def evaluations(self) -> np.ndarray:
        """One row per evaluation of the global model (m,): `time_s`, `version`, and a field for each metric."""
        return self._record.evaluations

    @property
    def client_evaluations(self) -> np.ndarray:
        """One row per test of a client on its held-out data (k,), with `client` and `round`; evaluation.client_rounds."""
        return self._record.client_evaluations

    @property
    def events(self) -> np.ndarray:
        """What happened besides updates: record.EVENT (e,), fields such as `kind`, `client`, `seconds` and `text`."""
        return self._record.events

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics by name, with direction and unit; without `finish`, since the values of the tables are final."""
        return self._record.metrics.by_name

    @property
    def clients(self) -> np.ndarray:
        """One row per client: heterogeneity.PROFILE (clients,), fields such as `samples` and `slowdown`."""
        clients = self._record.attributes["clients"]
        assert isinstance(clients, np.ndarray)
        return clients

    @property
    def result(self) -> dict[str, object] | None:
        """The figures at the end of the run, as in result.json; None while it goes on."""
        path = self.path / "result.json"
        if not path.exists():
            return None
        result: dict[str, object] = read_json(path)
        return result

    def frame(self, table: str) -> "pandas.DataFrame":
        """A table as a frame of pandas, a column for each field.

        Args:
            table: `updates`, `evaluations`, `client_evaluations`, `events` or `clients`.

        Raises:
            ValueError: there is no such table.
            ImportError: pandas is not installed.
        """
        if table not in FRAMES:
            raise ValueError(f"table {table!r}: expected one of: {', '.join(FRAMES)}")
        try:
            kind = import_module("pandas").DataFrame
        except ImportError:
            raise ImportError("a frame needs pandas: pip install 'asyncfeded[frames]'") from None
        frame: pandas.DataFrame = kind(getattr(self, table))
        return frame

    def load_into(self, module: nn.Module) -> None:
        """Load the trained model into a module that is like the one that the task makes: `load_state_dict`, strictly.

        Raises:
            ValueError: there is no trained model yet.
            RuntimeError: names or shapes differ, as `load_state_dict` says it.
        """
        module.load_state_dict(read_weights(weights_file(self.path)))

    @property
    def _record(self) -> record.Tables:
        path = self.path / "record.h5"
        files = (file for file in (path, *record.row_files(self.path)) if file.exists())
        now = [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files]
        if self._tables is None or now != self._seen:
            self._tables, self._seen = record.read_record(self.path), now
        return self._tables


def open(run_dir: str | os.PathLike[str]) -> Run:  # noqa: A001, said as asyncfeded.open
    """Open the run in a folder, also while it goes on.

    Raises:
        ValueError: the folder holds no run, or what it holds is damaged.
    """
    run = Run(Path(run_dir))
    run.updates  # noqa: B018, so that a folder without a run is told now
    return run
