"""Follows the record of a run while it is written: hands out each row once. It writes nothing and takes no lock.

The files of rows are opened anew for every look: so a network file system shows what another host has written. A job that
goes on from a checkpoint replaces them; then all rows come again. When the run ends, they are gone, and record.h5 has all.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from asyncfeded.files.hdf5 import open_hdf5
from asyncfeded.metric import Metrics
from asyncfeded.store.ownership import NAME, Watched
from asyncfeded.store.record import TABLES, check_rows, dtypes, read_about, read_record, row_files

MOST_ROWS = 1 << 16
"""Rows of a table that are read at once."""


class News(NamedTuple):
    """Rows that have come since the last look; see `record.Tables`."""

    updates: np.ndarray
    evaluations: np.ndarray
    client_evaluations: np.ndarray
    events: np.ndarray
    anew: bool
    """Whether these are the first rows: what was handed out before does not count any more."""


class Follower:
    """Follows the record in the folder of a run.

    Args:
        run_dir: the folder.

    Attributes:
        metrics: those of the task.
        attributes: see `record.Tables`.
        ended: whether the run had ended at the last look: no job writes the record, and it is whole.

    Raises:
        ValueError: there is no record, it is damaged, or it is of another schema.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path, self._rows = run_dir / "record.h5", row_files(run_dir)
        self._owner = Watched(run_dir / NAME)
        self._open: list[BinaryIO] = []  # held, so that the system gives their numbers to no other files
        self._counts, self._anew, self.ended = [0] * len(TABLES), True, False
        self.metrics, self.attributes = self._about()

    @property
    def is_alive(self) -> bool:
        """Whether a job is at work on the run, as far as this host can know; see `Watched`."""
        return self._owner.is_alive()

    def news(self) -> Iterator[News]:
        """The rows that have come, in parts; at least one part, which may be empty.

        Raises:
            ValueError: the record is damaged.
        """
        while True:
            parts = self._look()
            check_rows(self._path, parts[0], len(np.asarray(self.attributes["clients"])))
            self._counts = [count + len(part) for count, part in zip(self._counts, parts, strict=True)]
            anew, self._anew = self._anew, False
            yield News(parts[0], parts[1], parts[2], parts[3], anew)
            if self.ended or all(len(part) < MOST_ROWS for part in parts):
                return

    def __enter__(self) -> "Follower":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files that are open between two looks."""
        while self._open:
            self._open.pop().close()

    def _look(self) -> list[np.ndarray]:
        """New rows of each table."""
        kinds, files = dtypes(self.metrics).values(), self._files()
        self.ended = not files
        if not files:
            tables = read_record(self._path.parent)  # a run that has ended, or one that begins just now
            rows = [getattr(tables, name) for name in TABLES]
            if any(len(have) < count for have, count in zip(rows, self._counts, strict=True)):
                self._begin_anew()
            return [have[count:] for have, count in zip(rows, self._counts, strict=True)]
        if self._open and [os.fstat(file.fileno()).st_ino for file in self._open] != [
            os.fstat(file.fileno()).st_ino for file in files
        ]:
            self._begin_anew()
        self.close()
        self._open = files
        parts = []
        for file, kind, count in zip(files, kinds, self._counts, strict=True):
            file.seek(count * kind.itemsize)
            raw = file.read(MOST_ROWS * kind.itemsize)
            parts.append(np.frombuffer(raw, kind, len(raw) // kind.itemsize))
        return parts

    def _begin_anew(self) -> None:
        self._counts, self._anew = [0] * len(TABLES), True
        self.metrics, self.attributes = self._about()

    def _files(self) -> list[BinaryIO]:
        """The files of rows, open; none once the run has ended."""
        files: list[BinaryIO] = []
        for path in self._rows:
            try:
                files.append(path.open("rb", buffering=0))
            except FileNotFoundError:
                for file in files:
                    file.close()
                return []
        return files

    def _about(self) -> tuple[Metrics, dict[str, object]]:
        with open_hdf5(self._path, sealed=True, advice="give the folder of a run (run_dir)") as file:
            return read_about(self._path, file)
