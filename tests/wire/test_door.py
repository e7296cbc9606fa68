"""Clients that come: what they say at the door, whom they become, and how the server learns that they have gone."""

import json
import stat
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from asyncfeded.wire.door import NAME, Door, knock, send_away

MPI = "MPICH 5.0.2"


@pytest.fixture
def door(tmp_path):
    """A door for clients 3 and 4; it lets in whoever says how many parameters there are."""

    def welcome(asked):
        if asked.get("params") != 7:
            raise ValueError("another model")
        return {"threads": 2}

    door = Door(tmp_path / NAME, MPI, lambda: [3, 4], welcome)
    yield door
    door.close()


def news_of(door, what):
    """The guest of which something is heard."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for guest, heard in door.news():
            if heard == what:
                return guest
        time.sleep(0.001)
    raise AssertionError(f"nobody is {what}")


@pytest.fixture
def ask(tmp_path):
    """Be somebody who wants to be a client: the conversation, and what it is told."""
    with ExitStack() as lines:

        def ask(**words):
            line, password = knock(tmp_path, MPI)
            lines.enter_context(line)
            line.say(**{"password": password, "ask": "join", "client": -1, "params": 7} | words)
            return line, line.hear()

        yield ask


def test_a_client_comes_is_connected_and_goes(door, ask):
    line, told = ask()
    assert told == {"client": 3, "threads": 2}
    line.say(where="node1, cpu")
    guest = news_of(door, "ready")
    assert (guest.client, guest.where, guest.line.is_open) == (3, "node1, cpu", True)
    guest.line.say(port="tag#1")
    assert line.hear() == {"port": "tag#1"}
    line.say(connecting=True)
    assert news_of(door, "connecting") is guest
    line.close()  # as the system does when its process ends
    assert news_of(door, "gone") is guest
    assert not guest.line.is_open
    assert ask()[1]["client"] == 3


def test_each_client_is_given_once_and_the_one_that_is_asked_for(door, ask):
    first, told = ask(client=4)
    assert told["client"] == 4
    assert ask(client=4)[1] == {"refused": "client 4 is not free: nobody trains [3]"}
    second, told = ask()
    assert told["client"] == 3
    assert ask()[1]["refused"].startswith("somebody trains each client of this run")
    assert first.is_open
    assert second.is_open


def test_who_does_not_agree_or_has_no_password_is_not_let_in(door, ask, tmp_path):
    assert ask(params=8)[1] == {"refused": "another model"}
    assert ask(password="guessed")[1] is None
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600


def test_a_client_is_asked_to_leave(door, ask, tmp_path):
    with pytest.raises(ValueError, match="name a client: nobody has joined"):
        send_away(tmp_path, -1)
    line, _ = ask()
    assert send_away(tmp_path, -1) == 3
    assert line.hear() == {"leave": True}
    with pytest.raises(ValueError, match=r"client 1 has not joined this run: those that have are \[3\]"):
        send_away(tmp_path, 1)


def test_where_no_run_goes_on_a_sentence_says_so(tmp_path):
    with pytest.raises(ValueError, match="no run goes on here that clients may join; one with late = 1"):
        knock(tmp_path)
    door = Door(tmp_path / NAME, MPI, list, dict)
    with pytest.raises(ValueError, match=r"its run uses MPICH 5\.0\.2, and this is Open MPI 5\.0\.9; join with the same"):
        knock(tmp_path, "Open MPI 5.0.9")
    left = (tmp_path / NAME).read_text()
    door.close()
    assert not (tmp_path / NAME).exists()
    (tmp_path / NAME).write_text(json.dumps(json.loads(left)))  # of a job that was killed
    with pytest.raises(ValueError, match=r"cannot be reached .* the run has ended"):
        knock(tmp_path)


def test_the_run_of_another_user_is_told(tmp_path, monkeypatch):
    def refused(_):
        raise PermissionError

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(ValueError, match="this run is another user's; only who started it can let clients in or out"):
        send_away(tmp_path, 1)
