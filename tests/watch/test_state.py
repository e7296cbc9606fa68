"""What a watcher knows of a run, from rows by hand."""

import json
import os

import pytest

from asyncfeded.store.follow import Follower
from asyncfeded.store.ownership import NAME, Ownership
from asyncfeded.store.record import Record, read_record
from asyncfeded.training.heterogeneity import PROFILE
from asyncfeded.watch import state as room
from asyncfeded.watch.state import State
from conftest import METRICS, places
from watch.runs import open_record, update


@pytest.fixture
def clock(monkeypatch):
    """The watcher's seconds."""
    now = [1000.0]
    monkeypatch.setattr(room.time, "monotonic", lambda: now[0])
    return now


def test_the_numbers_of_a_run(tmp_path, clock):
    """Two clients, four updates in 4 s, of which one was refused; the limit is 100 updates: 97 left at 3 in 4 s."""
    owned = Ownership(tmp_path / NAME, "it", print)
    with open_record(tmp_path, 3, limits={"updates": 100, "target": 0.9}) as book, Follower(tmp_path) as follower:
        state = State(follower)
        state.look()
        assert (state.phase, state.updates, state.limits()["updates"]) == ("running", 0, (0, 100))
        book.note(0.0, "began")
        book.updates.append(update(1.0, 0, epochs=2, next_epochs=5, gamma=0.5, eta=0.25, compute_s=0.75, service_s=0.1))
        book.updates.append(update(2.0, 1, epochs=2, next_epochs=3, gamma=2.0, eta=0.5, queue=2, service_s=0.1))
        book.updates.append(update(3.0, 0, epochs=5, gamma=1.0, eta=0.25, accepted=False, service_s=0.1))
        book.updates.append(update(4.0, 1, epochs=3, next_epochs=4, gamma=1.5, eta=0.5, train_loss=7.0, service_s=0.4))
        book.evaluations.append((3.5, 2, 0.75, 1.25))
        book.note(4.0, "refused", 0, text="refused, client 0: it is too long")
        book.note(4.0, "lost", 2, text="goes on without client 2: silent")
        book.note(4.0, "checkpoint", seconds=0.5, text="checkpoint-0000000004.h5: 1.0 MB")
        book.write()
        state.look()
        clients = state.clients
        assert (clients.updates.tolist(), clients.refused.tolist()) == ([1, 2, 0], [1, 0, 0])
        assert clients.K.tolist()[:2] == [5.0, 4.0]
        assert (clients.seen_s.tolist(), clients.round_s.tolist()[:2]) == ([3.0, 4.0, 0.0], [2.0, 2.0])
        assert clients.lost.tolist() == [False, False, True]
        assert clients.by_need(state.time_s).tolist() == [2, 0, 1]
        found = json.loads(json.dumps(state.figures(), allow_nan=False))
        assert found["limits"] == {"updates": {"value": 3, "limit": 100}, "target accuracy": {"value": 0.75, "limit": 0.9}}
        assert found["real_s_left"] == pytest.approx(97 / (3 / 4))
        assert (found["metrics"], found["tested_version"]) == ({"accuracy": 0.75, "loss": 1.25}, 2)
        assert found["medians"]["gamma"] == 1.5
        assert (found["server_busy"], found["queue"]) == (pytest.approx((0.1 + 0.1 + 0.4) / 3), 0.5)
        assert (found["checkpoint"]["seconds"], found["lost"], found["refused"]) == (0.5, 1, 1)
        assert found["clients"][1]["loss"] == 7.0
        assert (found["clients"][2]["gamma"], found["clients"][2]["lost"]) == (None, True)
        clock[0] += 10.0  # no row comes: the clock goes on, and the rate of now is 0
        state.look()
        assert (state.time_s, state.rates()[0]) == (14.0, pytest.approx(0.3))
        owned.release()
        state.look()
        assert (state.phase, state.time_s) == ("silent", 4.0)
    state.look()
    assert state.phase == "ended"


def test_a_run_that_goes_on_is_counted_anew(tmp_path):
    with open_record(tmp_path, 2) as book:
        for number in range(4):
            book.updates.append(update(float(number), number % 2))
        book.note(3.0, "lost", 1)
        book.write()
        with Follower(tmp_path) as follower:
            state = State(follower)
            state.look()
            assert (state.updates, state.clients.lost.tolist()) == (4, [False, True])
            book.release()
            before = read_record(tmp_path)
            config, profiles = str(before.attributes["config"]), before.attributes["clients"]
            assert profiles.dtype == PROFILE
            before = before._replace(updates=before.updates[:3])
            with Record(tmp_path / "record.h5", config, places("one"), profiles, METRICS, before) as again:
                again.note(2.0, "began", text="checkpoint-0000000003.h5")
                again.write()
                state.look()
                assert (state.updates, state.clients.updates.tolist()) == (3, [2, 1])
                assert state.clients.lost.tolist() == [False, False]


def test_a_simulated_clock_does_not_go_on_by_itself(tmp_path, clock):
    owned = Ownership(tmp_path / NAME, "it", print)
    with open_record(tmp_path, 2, clock="virtual", limits={"seconds": 60}) as book, Follower(tmp_path) as follower:
        state = State(follower)
        state.look()
        for _ in range(2):
            clock[0] += 5.0
            book.updates.append(update(20.0 + clock[0] - 1005.0, 0))
            book.write()
            state.look()
        assert state.time_s == 25.0
        assert state.rates() == (pytest.approx(0.2), pytest.approx(2.5))  # 25 simulated seconds in 10 real ones
        assert state.left_s() == pytest.approx((60 - 25) / 2.5)
        assert state.figures()["seconds_are"] == "simulated"
        assert state.figures()["server_busy"] is None
    owned.release()
    assert not os.path.lexists(tmp_path / NAME)
