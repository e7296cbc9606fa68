"""A record in files of other programs: every row, every column, the same values."""

import csv

import numpy as np
import pytest

from asyncfeded.run.tables import export_tables
from asyncfeded.store.record import TABLES, UPDATE, Record, read_record
from asyncfeded.training.heterogeneity import PROFILE
from conftest import METRICS, places


@pytest.fixture
def run_dir(tmp_path):
    with Record(tmp_path / "record.h5", "seed = 1", places("here"), np.zeros(1, PROFILE), METRICS) as book:
        for number in (1, 2):
            book.updates.append((number / 3, 0, *[number] * (len(UPDATE) - 3), True))
        book.evaluations.append((0.1, 1, np.nan, 1e-300))
        book.note(0.5, "lost", 0, text="goes on without client 0, ä")
    return tmp_path


def same(name, given, run_dir):
    """Whether a table that was read from a file, a tuple of each row, is that of the record."""
    rows = getattr(read_record(run_dir), name)
    assert len(given) == len(rows)
    for row, expected in zip(given, rows, strict=True):
        for value, there in zip(row, expected.tolist(), strict=True):
            there = there.decode() if isinstance(there, bytes) else there
            assert value == there or (value != value and there != there)


def test_csv_has_a_file_for_each_table(run_dir):
    said = export_tables(run_dir, "csv", run_dir / "csv")
    assert said == f"{run_dir / 'csv'}: 2 updates, 1 evaluations, 0 client evaluations, 1 events"
    for name in TABLES:
        with (run_dir / "csv" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file)
        kinds = getattr(read_record(run_dir), name).dtype
        assert tuple(head) == kinds.names
        read = {"f": float, "i": int, "b": lambda text: text == "True", "S": str}
        same(
            name, [[read[kinds[column].kind](text) for column, text in zip(head, row, strict=True)] for row in rows], run_dir
        )


def test_nothing_is_replaced(run_dir):
    (run_dir / "csv").mkdir()
    with pytest.raises(ValueError, match=r"csv: is there already; move it away, or name another folder with --output"):
        export_tables(run_dir, "csv", run_dir / "csv")


def test_parquet_has_a_file_for_each_table(run_dir):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install 'asyncfeded[parquet]'")
    export_tables(run_dir, "parquet", run_dir / "tables")
    for name in TABLES:
        rows = parquet.read_table(run_dir / "tables" / f"{name}.parquet").to_pylist()
        same(name, [tuple(row.values()) for row in rows], run_dir)


def test_tensorboard_gets_the_points_that_a_tracker_writes(run_dir):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install 'asyncfeded[tensorboard]'"
    )
    said = export_tables(run_dir, "tensorboard", run_dir / "points")
    assert said.startswith(f"{run_dir / 'points'}: 3 points")
    shown = accumulator.EventAccumulator(str(run_dir / "points")).Reload()
    assert [(event.step, event.value) for event in shown.Scalars("update/K")] == [(1, 1.0), (2, 2.0)]
    assert [event.step for event in shown.Scalars("test/loss")] == [1]
