"""Vectors that are read one after the other: cut, put together, and read from a file in blocks."""

import h5py
import numpy as np
import pytest

from asyncfeded.files.hdf5 import open_hdf5
from asyncfeded.files.plain import FileFaultError
from asyncfeded.store import rows as rows_room
from asyncfeded.store.rows import Rows, stored, together

VALUES = np.arange(15, dtype=np.float32).reshape(3, 5)


def some(values=VALUES, numbers=(7, 1, 4)):
    return Rows(numbers, values.shape[1], lambda: iter(values))


def told(rows):
    return {number: row.tolist() for number, row in rows}


def test_a_part_of_each_row():
    assert told(some().cut(-1, 2)) == {7: [0.0, 1.0], 1: [5.0, 6.0], 4: [10.0, 11.0]}
    assert (some().cut(3, 99).shape, some().cut(3, 99).nbytes) == ((3, 2), 24)
    assert told(some().cut(9, 12)) == {7: [], 1: [], 4: []}


def test_parts_that_lie_apart_are_the_whole_and_an_empty_one_counts_for_nothing():
    parts = [some().cut(0, 2), some().cut(2, 5), Rows()]
    for _ in range(2):  # each time from the beginning
        assert told(together(parts, "bases")) == told(some())
    assert len(together([], "bases")) == 0
    with pytest.raises(FileFaultError, match="bases: its slices hold different rows"):
        together([some(), some(numbers=(7, 1, 5))], "bases")


def test_rows_are_read_from_a_file_when_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_room, "BLOCK", 40)  # two rows at a time
    path = tmp_path / "it.h5"
    with h5py.File(path, "w") as file:
        file["bases/numbers"], file["bases/rows"] = np.array([7, 1, 4]), VALUES
    with open_hdf5(path, sealed=True) as file:
        rows, none = stored(path, file, "bases"), stored(path, file, "own")
    assert (told(rows), rows.length, len(none)) == (told(some()), 5, 0)
    path.unlink()
    with pytest.raises(FileFaultError, match="no such file"):
        told(rows)
