"""The rows of one table of a record, while its run goes on: a file that holds nothing else.

A kill at any instant leaves the rows whole except for the last one, and on a full disk they wait in memory. `record` makes
HDF5 of them.
"""

from pathlib import Path

import numpy as np


class Table:
    """The file of one table's rows, and the rows not yet written.

    Args:
        path: the file; replaced if it exists.
        rows: (n,), the rows that exist already.

    Attributes:
        count: number of rows so far, written or not.
    """

    def __init__(self, path: Path, rows: np.ndarray) -> None:
        part = path.with_name(path.name + ".part")
        part.write_bytes(rows.tobytes())
        part.replace(path)
        self.path, self.count = path, len(rows)
        self.file, self._reader = path.open("ab", buffering=0), path.open("rb")
        self._row, self._pending = np.zeros(1, rows.dtype), bytearray()

    def append(self, row: tuple[object, ...]) -> None:
        """Add a row. Its values are in the order of the fields."""
        self._row[0] = row
        self._pending += self._row.tobytes()
        self.count += 1

    def write(self) -> None:
        """Hand the rows over to the system. If that raises OSError, the rows that were not written are kept."""
        while self._pending:
            del self._pending[: self.file.write(self._pending)]

    def rows(self) -> np.ndarray:
        """The complete rows that were written, also where the file is no longer in its folder."""
        self._reader.seek(0)
        return np.fromfile(self._reader, self._row.dtype)

    def all_rows(self) -> np.ndarray:
        """All rows, written or not. No other thread may write meanwhile."""
        self._reader.seek(0)
        return np.frombuffer(self._reader.read() + self._pending, self._row.dtype)

    def close(self) -> None:
        """Close the file."""
        self.file.close()
        self._reader.close()
