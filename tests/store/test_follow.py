"""A record is followed while it is written: each row comes once, also when the run is killed, goes on, or ends."""

import numpy as np
import pytest

from asyncfeded.store import follow
from asyncfeded.store.follow import Follower
from asyncfeded.store.record import UPDATE, Record, read_record
from asyncfeded.training.heterogeneity import PROFILE
from conftest import METRICS, places

CLIENTS = np.zeros(100, PROFILE)


def update(number):
    """A row of updates that can be told by its round."""
    return tuple({"round": number, "accepted": True}.get(name, 0) for name in UPDATE.names)


def rounds(follower):
    """The rounds of the rows that have come, and whether they were the first."""
    parts = list(follower.news())
    return [number for part in parts for number in part.updates["round"].tolist()], parts[0].anew


def append(book, *numbers):
    for number in numbers:
        book.updates.append(update(number))
    book.write()


@pytest.fixture
def book(tmp_path):
    with Record(tmp_path / "record.h5", "", places("one", "two"), CLIENTS, METRICS) as book:
        yield book


@pytest.fixture
def follower(tmp_path, book):
    with Follower(tmp_path) as follower:
        yield follower


def test_each_row_comes_once_whatever_happens_to_the_run(tmp_path, book, follower, monkeypatch):
    monkeypatch.setattr(follow, "MOST_ROWS", 2)
    assert rounds(follower) == ([], True)
    append(book, 1, 2, 3, 4, 5)
    assert rounds(follower) == ([1, 2, 3, 4, 5], False)
    append(book, 6)
    assert rounds(follower) == ([6], False)
    with (tmp_path / "record.h5.updates").open("ab") as file:  # a kill in the middle of a row
        file.write(b"half a row")
    assert rounds(follower) == ([], False)
    book.release()
    before = read_record(tmp_path)
    point = before._replace(updates=before.updates[:3])
    with Record(tmp_path / "record.h5", "resumed", places("one"), CLIENTS, METRICS, point) as again:
        append(again, 14)
        assert rounds(follower) == ([1, 2, 3, 14], True)
        assert (follower.attributes["config"], follower.ended) == ("resumed", False)
        append(again, 15)
    assert (rounds(follower), follower.ended) == (([15], False), True)
    assert rounds(Follower(tmp_path)) == ([1, 2, 3, 14, 15], True)


def test_who_follows_changes_no_file(tmp_path, book, follower):
    def seen():
        return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}

    append(book, 1)
    before = seen()
    assert rounds(follower) == ([1], True)
    assert not follower.is_alive
    assert seen() == before


def test_a_folder_without_a_run_and_damaged_rows_are_told(tmp_path, book, follower):
    with pytest.raises(ValueError, match=r"record\.h5: no such file; give the folder of a run"):
        Follower(tmp_path / "elsewhere")
    book.updates.append(tuple(200 if name == "client" else 1 for name in UPDATE.names))
    book.write()
    with pytest.raises(ValueError, match="the run has clients 0 to 99; the record is damaged"):
        rounds(follower)
