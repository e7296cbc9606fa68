"""Who trains when a job begins, by rows of events worked by hand."""

import math
from types import SimpleNamespace

import numpy as np

from asyncfeded.run.attendance import Guests, begin
from asyncfeded.store.record import EVENT


def events(*rows):
    """Rows of EVENT: kind, client, and number of updates."""
    made = np.zeros(len(rows), EVENT)
    for row, (kind, client, updates) in zip(made, rows, strict=True):
        row["kind"], row["client"], row["updates"], row["time_s"] = kind, client, updates, updates / 10
    return made


def state(share=(0.5, math.nan, 0.5, math.nan)):
    """Of four clients, who have had five orders each; a checkpoint has no share for those who were lost."""
    return SimpleNamespace(lost=np.zeros(4, bool), rounds=np.full(4, 5), share=np.array(share))


def test_in_a_new_run_those_without_a_rank_are_absent():
    server = state()
    assert begin(server, range(2, 4), None, 0) == {2: "absent", 3: "absent"}
    assert server.lost.tolist() == [False, False, True, True]


def test_a_run_that_goes_on_tells_what_has_changed_since_its_checkpoint():
    """Client 1 was lost and has a rank again; 2 was there and has none; 3 was lost, and is not there: it got no order."""
    before = events(("absent", 2, 0), ("joined", 2, 3), ("lost", 1, 7), ("lost", 3, 8), ("back", 3, 12))
    server = state()
    assert begin(server, [2, 3], before, 10) == {2: "lost", 3: "lost", 1: "back"}
    assert server.rounds.tolist() == [5, 5, 5, 4]
    server = state(share=(0.5, 0.5, 0.5, 0.5))
    begin(server, [2, 3], before, 10)
    assert server.rounds.tolist() == [5, 5, 5, 5]  # client 3 was lost after the checkpoint, with an order


def test_the_time_of_guests_is_summed():
    guests = Guests()
    for kind, client, now_s in (
        ("joined", 3, 1.0),
        ("joined", 4, 2.0),
        ("left", 3, 5.0),
        ("lost", 0, 5.5),
        ("refused", 4, 6.0),
    ):
        guests.note(kind, client, now_s)
    assert guests.seconds(7.0) == 4.0 + 5.0
