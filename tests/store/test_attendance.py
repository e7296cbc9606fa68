"""Who came and went, by rows of events worked by hand."""

import numpy as np

from asyncfeded.store.attendance import attendance, lines
from asyncfeded.store.record import EVENT


def events(*rows):
    """Rows of EVENT: kind, client, and number of updates."""
    made = np.zeros(len(rows), EVENT)
    for row, (kind, client, updates) in zip(made, rows, strict=True):
        row["kind"], row["client"], row["updates"], row["time_s"] = kind, client, updates, updates / 10
    return made


def test_what_came_after_the_checkpoint_of_a_later_job_is_not_of_the_run():
    rows = events(("began", -1, 0), ("absent", 1, 0), ("joined", 1, 4), ("left", 1, 9), ("began", -1, 6), ("lost", 1, 6))
    assert attendance(rows)["kind"].tolist() == [b"absent", b"joined", b"lost"]


def test_lines_tell_who_came_and_went():
    rows = events(("absent", 2, 0), ("absent", 3, 0), ("joined", 3, 15), ("evaluated", -1, 16))
    rows["text"][2] = b"client 3 has joined: node1"
    assert lines(rows) == ["at the start nobody trained client 2, 3", "1.5 s: client 3 has joined: node1"]
    assert lines(events(("lost", 3, 20))) == ["2.0 s: client 3 is lost"]
    assert lines(rows[:0]) == []
