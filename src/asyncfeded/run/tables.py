"""Gives the tables of a record to other programs: files of CSV or Parquet, or points for TensorBoard."""

import csv
from pathlib import Path

import numpy as np

from asyncfeded.run.sinks import check_sinks, open_sink
from asyncfeded.run.tracker import Points, about
from asyncfeded.store.follow import Follower, News
from asyncfeded.store.record import TABLES, Tables, read_record

KINDS = ("csv", "parquet", "tensorboard")
"""What `export_tables` writes."""
MOST_POINTS = 10_000
"""Points of updates for TensorBoard; of more updates, each point is a mean over neighbours."""


def export_tables(run_dir: Path, kind: str, folder: Path) -> str:
    """Write the record of a run, also of one that goes on, into a new folder.

    Args:
        run_dir: folder of the run.
        kind: one of KINDS.
        folder: is made, and must not be there.

    Returns:
        A sentence about what it holds.

    Raises:
        ValueError: there is no record, a package is missing, or the folder is there or cannot be made.
    """
    if kind == "tensorboard":
        check_sinks((kind,), "--to")
    tables = read_record(run_dir)
    write = {"csv": _csv, "parquet": _parquet, "tensorboard": _tensorboard}[kind]
    if folder.exists():
        raise ValueError(f"{folder}: is there already; move it away, or name another folder with --output")
    try:
        folder.mkdir(parents=True)
        count = write(run_dir, tables, folder)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written: {error.strerror or error}") from None
    return f"{folder}: {count}"


def _columns(rows: np.ndarray) -> dict[str, np.ndarray]:
    """A table by column; texts are texts."""
    names = rows.dtype.names or ()
    return {
        name: np.char.decode(rows[name], "utf-8", "replace") if rows[name].dtype.kind == "S" else rows[name]
        for name in names
    }


def _counts(tables: Tables) -> str:
    return ", ".join(f"{len(getattr(tables, name))} {name.replace('_', ' ')}" for name in TABLES)


def _csv(run_dir: Path, tables: Tables, folder: Path) -> str:
    for name in TABLES:
        columns = _columns(getattr(tables, name))
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
    return _counts(tables)


def _parquet(run_dir: Path, tables: Tables, folder: Path) -> str:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        folder.rmdir()
        raise ValueError("--to: parquet needs a package that is not installed: pip install 'asyncfeded[parquet]'") from None
    for name in TABLES:
        parquet.write_table(pyarrow.table(_columns(getattr(tables, name))), folder / f"{name}.parquet")
    return _counts(tables)


def _tensorboard(run_dir: Path, tables: Tables, folder: Path) -> str:
    news = News(tables.updates, tables.evaluations, tables.client_evaluations, tables.events, True)
    with Follower(run_dir) as follower:
        sink = open_sink("tensorboard", about(run_dir, follower, news, 0), folder)
    count = 0
    for point in Points(tables.metrics).of(news, MOST_POINTS):
        sink.log(*point)
        count += 1
    sink.close()
    return f"{count} points; look at them with tensorboard --logdir {folder}"
