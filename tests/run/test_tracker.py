"""What a tracker makes of the rows of a run, and what it does when nobody takes its points."""

import math
import threading

import numpy as np
import pytest

from asyncfeded.run import tracker
from asyncfeded.run.tracker import Points, follow, hyperparameters
from asyncfeded.store.follow import News
from asyncfeded.store.record import UPDATE, Record
from asyncfeded.training.heterogeneity import PROFILE
from conftest import METRICS, places, tables


def update(version, **values):
    """A row of updates at half a second for each version."""
    known = {"version": version, "time_s": version / 2, "accepted": True} | values
    return tuple(known.get(name, 0) for name in UPDATE.names)


def test_points_are_means_over_neighbours_at_the_time_of_the_run():
    """The first job began at Unix time 1,000, at 0 s of the run; version 2 was taken at 1 s."""
    rows = [
        update(1, gamma=1.0, epochs=2),
        update(2, gamma=math.nan, epochs=4),
        update(2, accepted=False),
        update(4, gamma=3.0),
    ]
    events = [(1000.0, 0.0, b"began", -1, 0, 0.0, b""), (1500.0, 1.0, b"began", -1, 0, 0.0, b"checkpoint")]
    given = tables(rows, [(1.25, 2, 0.75, 1.5)], events=events)
    news = News(given.updates, given.evaluations, given.client_evaluations, given.events, True)
    first, test, last = Points(METRICS).of(news, 2)
    assert (first.step, first.at_s) == (2, 1001.0)
    assert (first.values["update/gamma"], first.values["update/K"], first.values["server/updates_per_s"]) == (1.0, 3.0, 2.0)
    assert test == (2, 1001.25, {"test/accuracy": 0.75, "test/loss": 1.5})
    assert (last.step, last.values["update/gamma"], last.values["server/refused"]) == (4, 3.0, 1.0)
    assert "server/updates_per_s" not in last.values  # one update has no rate


def test_hyperparameters_are_flat():
    toml = 'seed = 1\n[rule]\nname = "asyncfeded"\nlambda = 1.0\n[task.initial]\nnames = ["a", "b"]\n'
    assert hyperparameters(toml) == {
        "seed": 1, "rule.name": "asyncfeded", "rule.lambda": 1.0, "task.initial.names": "['a', 'b']",
    }  # fmt: skip


class Sink:
    """Fails for the points that a test names."""

    def __init__(self, fails=(), stuck=None):
        self.taken, self.fails, self.stuck, self.closed = [], fails, stuck, False

    def log(self, step, at_s, values):
        if self.stuck:
            self.stuck.wait(10)
        if step in self.fails:
            raise ConnectionError("no network\nmore")
        self.taken.append(step)

    def close(self):
        self.closed = True


def track(folder, sink, monkeypatch, after=0):
    """Follow a run whose third update comes while it goes on, to its end. Returns what is said."""
    said, looks = [], []
    monkeypatch.setattr(tracker, "open_sink", lambda name, about: sink)
    with Record(folder / "record.h5", "seed = 1", places("here"), np.zeros(1, PROFILE), METRICS) as book:
        for version in (1, 2):
            book.updates.append(update(version))
        book.write()

        def until(seconds):
            looks.append(seconds)
            book.updates.append(update(2 + len(looks)))
            book.write()
            if len(looks) == 2:
                book.close()
            return len(looks) == 2

        follow("it", folder, after, until, said.append)
    assert sink.closed
    return said


def test_a_tracker_gives_away_every_point_behind_the_checkpoint(tmp_path, monkeypatch):
    sink = Sink()
    assert track(tmp_path, sink, monkeypatch, after=1) == []
    assert sink.taken == [2, 3, 4]


def test_points_that_nobody_takes_are_lost_and_told_once(tmp_path, monkeypatch):
    sink = Sink(fails=(1, 2, 3))
    told = track(tmp_path, sink, monkeypatch)
    assert told == ["it: takes no points (ConnectionError: no network); they are lost, and the run goes on"]
    assert sink.taken == [4]


def test_a_sink_that_is_stuck_is_told_meanwhile(tmp_path, monkeypatch):
    stuck = threading.Event()
    monkeypatch.setattr(tracker, "STUCK_S", 0.01)
    said = []

    class Once(tracker._Once):
        def __call__(self, why):
            super().__call__(why)
            stuck.set()

    monkeypatch.setattr(tracker, "_Once", Once)
    said = track(tmp_path, Sink(stuck=stuck), monkeypatch)
    assert said == ["it: takes no points (nothing for 0 s); they are lost, and the run goes on"]


@pytest.mark.parametrize("count", [1, 10, 1000])
def test_a_look_makes_few_points_of_many_updates(count):
    given = tables([update(version) for version in range(1, count + 1)])
    news = News(given.updates, given.evaluations, given.client_evaluations, given.events, True)
    assert len(list(Points(METRICS).of(news, tracker.MOST))) == min(count, 10)
