"""The file of rows of a table, and the rows that wait for the disk."""

import errno

import numpy as np
import pytest

from asyncfeded.store.table import Table

ROW = np.dtype([("a", np.int32), ("b", np.float64)])


@pytest.fixture
def table(tmp_path):
    made = Table(tmp_path / "rows", np.array([(1, 0.5)], ROW))
    yield made
    made.close()


def test_rows_wait_in_memory_until_they_are_written(table):
    table.append((2, 1.5))
    assert (table.count, table.rows().tolist(), table.all_rows().tolist()) == (2, [(1, 0.5)], [(1, 0.5), (2, 1.5)])
    table.write()
    assert table.rows().tolist() == table.all_rows().tolist() == [(1, 0.5), (2, 1.5)]


def test_a_disk_that_takes_a_part_of_a_row_gets_the_rest_later(table, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file, self.left = file, 5

        def write(self, part):
            if not self.left:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken, self.left = self.file.write(part[: self.left]), 0
            return taken

    disk = table.file
    monkeypatch.setattr(table, "file", Full(disk))
    table.append((2, 1.5))
    with pytest.raises(OSError, match="No space left"):
        table.write()
    assert table.rows().tolist() == [(1, 0.5)]  # whole rows only
    monkeypatch.setattr(table, "file", disk)
    table.write()
    assert table.rows().tolist() == [(1, 0.5), (2, 1.5)]


def test_it_goes_on_where_its_file_is_no_longer_in_its_folder(table):
    table.path.unlink()
    table.append((2, 1.5))
    table.write()
    assert table.rows().tolist() == [(1, 0.5), (2, 1.5)]
