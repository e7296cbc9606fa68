"""What a run writes down: `record.h5`, one row per update and per evaluation, and where the run came from.

Rows are gathered in memory and written in blocks: at once when a block is full, and every few seconds, so that a killed run
keeps all but its last seconds. Read a record with `read`, or with h5py: the tables are compound datasets.
"""

import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import h5py
import numpy as np

SCHEMA = 1
"""Version of the layout of record.h5."""

UPDATE = np.dtype(
    [
        ("time_s", np.float64),  # since the first model was sent, on the run's clock
        ("client", np.int32),
        ("round", np.int32),  # of this client
        ("version", np.int64),  # of the global model after this update
        ("base_version", np.int64),  # of the model that the client started from
        ("tau", np.int64),  # versions in between
        ("gamma", np.float64),
        ("eta", np.float64),
        ("epochs", np.int32),  # K of this update
        ("next_epochs", np.int32),  # K that the client got next; 0: no reply yet
        ("moved_norm", np.float64),  # ||x_t - x_s||
        ("change_norm", np.float64),  # ||w - x_s||
        ("train_loss", np.float64),
        ("samples", np.int64),
        ("steps", np.int64),
        ("compute_s", np.float64),  # of the client's round, its pacing included; wall time
        ("wait_s", np.float64),  # of the worker, between its previous update and the reply; wall time
        ("service_s", np.float64),  # of the server, from taking the update to having replied
        ("bytes", np.int64),  # of the update and its replies
        ("accepted", np.bool_),  # False: refused, and the global model is untouched
    ]
)
EVALUATION = np.dtype([("time_s", np.float64), ("version", np.int64), ("accuracy", np.float64), ("loss", np.float64)])
BLOCK = 1024  # rows: 100 KiB, and one write in 1024 updates


class Table:
    """A compound dataset that grows, and the rows not yet written."""

    def __init__(self, file: h5py.File, name: str, dtype: np.dtype) -> None:
        self._dataset = file.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(BLOCK,))
        self._rows = np.zeros(BLOCK, dtype)
        self._count = 0

    def append(self, row: tuple[object, ...]) -> None:
        """Add a row, values in the order of the fields."""
        self._rows[self._count] = row
        self._count += 1
        if self._count == BLOCK:
            self.write()

    def write(self) -> None:
        """Hand the rows over to HDF5."""
        if self._count:
            old = len(self._dataset)
            self._dataset.resize((old + self._count,))
            self._dataset[old:] = self._rows[: self._count]
            self._count = 0


class Record:
    """The record of a run in progress. Rank 0 alone writes it.

    Args:
        path: the file, which must not exist.
        config: the resolved config as TOML, stored with versions, commit and hosts.
        hosts: host of each rank.
        clients: heterogeneity.CLIENT (clients,).
        threads: of a worker; results are the same to the bit only with the same.
    """

    FLUSH_S = 2.0

    def __init__(self, path: Path, config: str, hosts: list[str], clients: np.ndarray, threads: int) -> None:
        # One process writes, and HDF5's lock would only keep readers out (and fails where a file system has no locks).
        self._file = h5py.File(path, "x", locking=False)
        self.updates = Table(self._file, "updates", UPDATE)
        self.evaluations = Table(self._file, "evaluations", EVALUATION)
        self._file.attrs["schema"] = SCHEMA
        for key, value in provenance().items():
            self._file.attrs[key] = value
        # Datasets: an attribute holds 64 KiB at most, the names of some thousand hosts.
        self._file.create_dataset("hosts", data=hosts, dtype=h5py.string_dtype())
        self._file["config"], self._file["clients"] = config, clients
        self._file.attrs["threads"] = threads
        self._file.flush()
        self._flushed = time.monotonic()

    def flush_if_due(self) -> None:
        """Write what is pending, if it is time."""
        if time.monotonic() - self._flushed > self.FLUSH_S:
            self.updates.write()
            self.evaluations.write()
            self._file.flush()
            self._flushed = time.monotonic()

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Write everything and close the file, if that is not done."""
        if not self._file:
            return
        self.updates.write()
        self.evaluations.write()
        self._file.close()


class Tables(NamedTuple):
    """A record that was read."""

    updates: np.ndarray
    """UPDATE (n,)."""
    evaluations: np.ndarray
    """EVALUATION (m,)."""
    attributes: dict[str, object]
    """Versions, commit, platform, hosts (of each rank) and config (TOML)."""


def read(run_dir: Path) -> Tables:
    """The record in a run's folder, also while the run goes on.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    path = run_dir / "record.h5"
    try:
        with h5py.File(path, "r", locking=False) as file:
            origin = {"hosts": list(file["hosts"].asstr()), "config": file["config"].asstr()[()]}
            return Tables(file["updates"][:], file["evaluations"][:], dict(file.attrs) | origin)
    except (OSError, KeyError, TypeError) as error:
        what = "no such file" if not path.exists() else f"not a readable record ({error})"
        raise ValueError(f"{path}: {what}; give the folder of a run (run_dir)") from None


def provenance() -> dict[str, str]:
    """Versions of the program and what it stands on, commit, Python and platform."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "commit": _commit()}
    for package in ("asyncfeded", "torch", "numpy", "mpi4py", "h5py"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def _commit() -> str:
    """Commit of the source tree this program runs from, with `+` if it was changed since; empty if it is installed."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, timeout=10)
        if tracked.returncode:
            return ""
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, timeout=10).returncode
        return head.stdout.strip() + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""
