"""The record of a run: `record.h5`, with one row per update, per evaluation and per event, and the provenance of the run.

While a run goes on, its rows are appended every few seconds to files that hold only rows (table.py), `record.h5.updates` and
the like. A kill at any instant leaves them whole except for the last row, and a full disk makes rows wait in
memory. From these files record.h5 is written anew in the background, from time to time and at the end, whole or not at all;
at the end they are removed. HDF5 itself does not write to the disk: a kill between two of its writes could destroy the file,
and on a full disk it ends the process. Read a record with `read_record`, which takes the rows of a run that goes on or was
killed from these files, or with h5py: the tables are compound datasets.
"""

import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Annotated, NamedTuple, TypeAlias, get_type_hints

import numpy as np

from asyncfeded.files.hdf5 import Group, open_hdf5
from asyncfeded.files.plain import FileFaultError, read_bytes
from asyncfeded.metric import Metrics
from asyncfeded.mpi.placement import PLACE
from asyncfeded.store.sealed import checksum, text, write
from asyncfeded.store.table import Table

SCHEMA = 5
"""Version of the layout of record.h5. Version 4 did not split `service_s`, and had no `learning_rate` and `measured`;
version 3 had no events; version 2 knew accuracy and loss only, and had no `share`; version 1 had no places or `queue`."""

Int32: TypeAlias = Annotated[int, np.int32]
Int64: TypeAlias = Annotated[int, np.int64]
Float32: TypeAlias = Annotated[float, np.float32]
Float64: TypeAlias = Annotated[float, np.float64]
Bool: TypeAlias = Annotated[bool, np.bool_]


class UpdateRow(NamedTuple):
    """One update, as the server saw it: a row of the table `updates`."""

    time_s: Float64
    """When it was taken, in seconds since the first model was sent, on the run's clock."""
    client: Int32
    round: Int32
    """Round of this client."""
    version: Int64
    """Version of the global model after this update."""
    base_version: Int64
    """Version of the model that the client started from."""
    tau: Int64
    """How many versions lie in between."""
    gamma: Float64
    eta: Float64
    epochs: Int32
    """K of this update, in epochs or in steps (training.unit)."""
    next_epochs: Int32
    """K that the client got next. 0: no reply yet."""
    moved_norm: Float64
    """||x_t - x_s||."""
    change_norm: Float64
    """||w - x_s||."""
    train_loss: Float64
    samples: Int64
    steps: Int64
    """Steps of the client's optimizer."""
    share: Float64
    """Part of the run that was done, 0 to 1, when the client was sent that version."""
    learning_rate: Float64
    """Learning rate of the round, before the schedule, that the rule had set. 0: that of the config."""
    measured: Float64
    """What the rule asks clients to measure. NaN: nothing."""
    compute_s: Float64
    """Wall time of the client's round, pacing included."""
    wait_s: Float64
    """Wall time of the worker between its previous update and the reply."""
    service_s: Float64
    """Time of the server, from taking the update to the end of the reply."""
    receive_s: Float32
    """Wall time from the beginning of its receipt to its taking."""
    measure_s: Float32
    """Part of `service_s`: until the distances were known. Most of a large update is measured while it is received."""
    merge_s: Float32
    """Part of `service_s` behind that: the rule. The rest is the reply, in which most rules merge chunk by chunk."""
    queue: Int32
    """How many other updates were here and not taken yet, on the wall clock."""
    bytes: Int64
    """Bytes of the update and its replies."""
    accepted: Bool
    """False: the update was refused, and the global model is untouched."""


UPDATE = np.dtype([(name, kind.__metadata__[0]) for name, kind in get_type_hints(UpdateRow, include_extras=True).items()])
"""An update: the fields of `UpdateRow` in order, so that names and types are written only once."""
MEASURED = ("compute_s", "wait_s", "service_s", "receive_s", "measure_s", "merge_s")
"""Columns that the wall clock measured: no two runs have the same, also where all else is the same to the bit."""
EVENT = np.dtype(
    [
        ("at_s", np.float64),  # Unix time when it ended, on the clock of the server's host
        ("time_s", np.float64),  # when it began, on the run's clock
        ("kind", "S12"),
        ("client", np.int32),  # -1: of no client
        ("updates", np.int64),  # how many rows `updates` had then
        ("seconds", np.float64),  # wall time that it took; 0: a moment
        ("text", "S200"),  # UTF-8, cut off
    ]
)
"""What happened besides updates.

Kinds: `began` (a job; `text`: the checkpoint, empty for a new run), `evaluated` (from the snapshot to the last batch),
`checkpoint` (its writing), `refused`, `dropped` (refused too often), `rank` (a rank was given up), `trouble` (the disk) and
`stopped` (a job); and of clients those in attendance.py. `evaluated` and `checkpoint` have `seconds`.
"""
TABLES = ("updates", "evaluations", "client_evaluations", "events")
"""The tables of a record."""


def dtypes(metrics: Metrics) -> dict[str, np.dtype[np.void]]:
    """The columns of each table; those of evaluations end with one for each metric.

    An evaluation is of the global model of that version. One of a client is of the model that it was sent for that round,
    on its own held-out data; its time is that of its update. Events stay when a run goes on from a checkpoint.
    """
    values = [(name, np.float64) for name in metrics.by_name]
    model, client = [("time_s", np.float64), ("version", np.int64)], [("client", np.int32), ("round", np.int32)]
    return dict(zip(TABLES, (UPDATE, np.dtype(model + values), np.dtype(model + client + values), EVENT), strict=True))


class Record:
    """The record of a run in progress. Only rank 0 writes it.

    Args:
        path: the file; replaced if it exists.
        config: the resolved config as TOML, stored with versions, commit and places.
        places: placement.PLACE (ranks,).
        clients: heterogeneity.PROFILE (clients,).
        metrics: those of the task.
        before: the rows of the run so far, if it is resumed. Later rows on the disk are dropped.
        check: called before anything is written; raises OSError if the folder must not be written any more.
        data: what the files of the data are (files/digest.py).

    Attributes:
        provenance: see `provenance`.
        threads: the most threads of a worker. Results are the same to the bit only with the same number.
        problem: why rows wait in memory, as a sentence; empty while the disk has room.
    """

    FLUSH_S = 2.0
    PUBLISH_S = 10.0
    """Least seconds between two writes of record.h5. If 50 times the duration of a write is more, that applies."""

    def __init__(
        self,
        path: Path,
        config: str,
        places: np.ndarray,
        clients: np.ndarray,
        metrics: Metrics,
        before: "Tables | None" = None,
        check: Callable[[], None] = lambda: None,
        data: str = "",
    ) -> None:
        self._path, self._check, self.provenance, self.problem = path, check, provenance(), ""
        self.threads = most_threads(places)
        self._attributes = {"schema": SCHEMA, "threads": self.threads} | self.provenance
        # As datasets: an attribute holds at most 64 KiB, the places of some hundred ranks.
        self._origin = {"placement": places, "config": text(config.encode()), "clients": clients}
        self._origin |= {"data": text(data.encode()), "metrics": metrics.rows()}
        self._tables = {
            name: Table(_rows_of(path, name), getattr(before, name) if before else np.zeros(0, dtype))
            for name, dtype in dtypes(metrics).items()
        }
        self.updates, self.evaluations, self.client_evaluations, self.events = self._tables.values()
        self._thread: threading.Thread | None = None
        self._publish()
        self._flush_due = self._publish_due = 0.0

    def note(self, time_s: float, kind: str, client: int = -1, seconds: float = 0.0, text: str = "") -> None:
        """Add an event that ends now; see EVENT."""
        cut = text.encode()[: EVENT["text"].itemsize].decode(errors="ignore")
        self.events.append((time.time(), time_s, kind.encode(), client, self.updates.count, seconds, cut.encode()))

    def write(self) -> None:
        """Hand all rows so far over to the system. Raises OSError if the disk is full; the rows are then kept."""
        self._check()
        for table in self._tables.values():
            table.write()

    def sync(self) -> None:
        """Force what was written onto the disk. Any thread may call this. Raises OSError."""
        self._check()
        for table in self._tables.values():
            os.fsync(table.file.fileno())

    def flush_if_due(self) -> None:
        """Write the pending rows, if the time has come."""
        now = time.monotonic()
        if now < self._flush_due:
            return
        self._flush_due = now + self.FLUSH_S
        try:
            self.write()
            self.problem = ""
        except OSError as error:
            self.problem = f"rows of the record wait in memory: {error.strerror}"
        if now >= self._publish_due and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._publish_now_and_then, name="record", daemon=True)
            self._thread.start()

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except OSError:
            if error is None:  # otherwise the error of the run is the one to report
                raise
        finally:
            self.release()

    def close(self) -> None:
        """Write everything into record.h5, if that is not done yet.

        Raises:
            OSError: it cannot be written. The files of the rows stay open beside it, with the rows that could be written.
        """
        if self.updates.file.closed:
            return
        if self._thread is not None:
            self._thread.join()
        self.write()
        self._publish()
        for table in self._tables.values():
            table.path.unlink(missing_ok=True)
        self.release()

    def save(self, path: Path) -> None:
        """Write everything into another file, after a `close` that failed. Raises OSError."""
        tables = {name: table.all_rows() for name, table in self._tables.items()}
        write(path, tables | self._origin, self._attributes)

    def release(self) -> None:
        """Close the files, with what is in them."""
        for table in self._tables.values():
            table.close()

    def _publish(self) -> None:
        self._check()
        tables = {name: table.rows() for name, table in self._tables.items()}
        write(self._path, tables | self._origin, self._attributes)

    def _publish_now_and_then(self) -> None:
        began = time.monotonic()
        with suppress(OSError):  # the disk is full; `problem` says so
            self._publish()
        ended = time.monotonic()
        self._publish_due = ended + max(self.PUBLISH_S, 50 * (ended - began))


class Tables(NamedTuple):
    """The content of a record."""

    updates: np.ndarray
    """UPDATE (n,)."""
    evaluations: np.ndarray
    """(m,), see `dtypes`."""
    client_evaluations: np.ndarray
    """(k,), see `dtypes`."""
    events: np.ndarray
    """EVENT (e,)."""
    metrics: Metrics
    """Those of the task; they have no `finish`."""
    attributes: dict[str, object]
    """Versions, commit, platform, placement (PLACE of each rank), clients (PROFILE of each), config (TOML) and data
    (files/digest.py; None in a record of an older version)."""


def read_record(run_dir: Path) -> Tables:
    """Read the record in a run's folder, also while the run goes on or after it was killed, and verify its checksum.

    Raises:
        ValueError: there is no record, it is damaged, or it is of another schema.
    """
    path = run_dir / "record.h5"
    raw = dict(_rows_so_far(path))  # before record.h5: if the run ends meanwhile, that has all rows
    checksum(path, "give the folder of a run (run_dir)")
    with open_hdf5(path, sealed=True) as file:
        metrics, attributes = read_about(path, file)
        stored = {name: _table(file, name, dtype) for name, dtype in dtypes(metrics).items()}
    for name, part in raw.items():
        dtype = stored[name].dtype
        stored[name] = np.frombuffer(part, dtype, len(part) // dtype.itemsize).copy()
    tables = Tables(**stored, metrics=metrics, attributes=attributes)
    check_rows(path, tables.updates, len(np.asarray(attributes["clients"])))
    return tables


def read_about(path: Path, file: Group) -> tuple[Metrics, dict[str, object]]:
    """What an open record says about its run, without the rows: `Tables.metrics` and `Tables.attributes`.

    Raises:
        ValueError: it is damaged, or of another schema.
    """
    attributes: dict[str, object] = dict(file.attributes())
    if (schema := attributes.get("schema")) != SCHEMA:
        by = f", written by asyncfeded {attributes['asyncfeded']}" if attributes.get("asyncfeded") else ""
        raise ValueError(
            f"{path}: expected a record of schema {SCHEMA}, this has schema {schema}{by}; read it with that version"
        )
    if not isinstance(attributes.get("threads"), int):
        raise ValueError(f"{path}: has no number of threads; it is damaged")
    told = file.array("metrics")
    attributes["placement"] = _table(file, "placement", PLACE)
    attributes["clients"] = _table(file, "clients", None)
    attributes["config"] = file.array("config").text()
    attributes["data"] = file.array("data").text() if file.kind("data") else None
    return Metrics.of_rows(told.read(), told.where), attributes


def _rows_so_far(path: Path) -> Iterator[tuple[str, bytes]]:
    """What is in each of the files of rows; there is none once the run has ended."""
    for name in TABLES:
        file = _rows_of(path, name)
        try:
            raw = read_bytes(file)
        except FileFaultError:
            if os.path.lexists(file):
                raise
            continue
        yield name, raw


def _table(file: Group, name: str, dtype: np.dtype[np.void] | None) -> np.ndarray:
    """A table of the record; `dtype`: None for any with names."""
    array = file.array(name)
    if len(array.shape) != 1 or array.dtype.names is None or dtype not in (None, array.dtype):
        raise ValueError(f"{array.where}: is {array.dtype} {array.shape}, expected a row of {dtype or 'columns'} for each")
    return array.read()


def check_rows(path: Path, updates: np.ndarray, num_clients: int) -> None:
    """Raise ValueError if rows cannot be those of a run: damage to the files of rows is seen only here."""
    wrong = (updates["client"] < 0) | (updates["client"] >= num_clients) | (updates["round"] < 0)
    wrong |= (updates["epochs"] < 0) | (updates["accepted"].view(np.uint8) > 1)
    if len(at := np.flatnonzero(wrong)):
        row = updates[at[0]]
        raise ValueError(
            f"{path}: row {at[0]} of `updates` is of client {row['client']}, round {row['round']} and K = {row['epochs']}, "
            f"but the run has clients 0 to {num_clients - 1}; the record is damaged"
        )


def most_threads(places: np.ndarray) -> int:
    """The largest number of threads of a worker in a map of ranks, placement.PLACE (ranks,)."""
    return int(places["threads"][places["role"] == b"worker"].max(initial=0))


def row_files(run_dir: Path) -> list[Path]:
    """The files of the rows of a run that goes on."""
    return [_rows_of(run_dir / "record.h5", table) for table in TABLES]


def _rows_of(path: Path, table: str) -> Path:
    return path.with_name(f"{path.name}.{table}")


def provenance() -> dict[str, str]:
    """Versions of the program, of Python and of the packages that it uses; commit and platform."""
    return {"platform": platform.platform(), "commit": _commit()} | versions()


def versions() -> dict[str, str]:
    """Versions of Python, of the program and of the packages that it uses."""
    found = {"python": platform.python_version()}
    for package in ("asyncfeded", "torch", "numpy", "mpi4py", "h5py"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def _commit() -> str:
    """Commit of the source tree that this program runs from, with `+` if the tree was changed since; empty if installed."""
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
