"""The screen of a watcher, as text."""

import numpy as np
import pytest
from rich.console import Console

from asyncfeded.store.follow import Follower
from asyncfeded.watch.keys import split
from asyncfeded.watch.screen import View, line, render
from asyncfeded.watch.state import State
from watch.runs import open_record, update


def shown(state, view, height=24):
    console = Console(width=140, height=height, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    with console.file:
        console.print(render(state, view, height))
    return console.export_text().splitlines()


@pytest.fixture
def state(tmp_path):
    """1,000 clients: client 7 is lost, 8 was refused, 9 is stale, and 10 takes the longest rounds."""
    with open_record(tmp_path, 1000, clock="virtual", task={"name": "digits"}) as book:
        for client in range(1000):
            book.updates.append(update(1.0 if client != 10 else 0.5, client, gamma=0.5))
        book.updates.append(update(2.0, 8, gamma=np.nan, accepted=False))
        book.updates.append(update(2.0, 9, gamma=50.0))
        book.updates.append(update(500.0, 10, gamma=0.5))
        book.note(3.0, "lost", 7, text="goes on without client 7: silent [bold]for 10 s[/bold]")
    with Follower(tmp_path) as follower:
        state = State(follower)
        state.look()
        yield state


def ids(lines):
    """The clients of the table."""
    first = next(number for number, text in enumerate(lines) if text.lstrip().startswith("client"))
    return [int(text.split()[0]) for text in lines[first + 1 :] if text.split() and text.split()[0].isdigit()]


def test_of_many_clients_those_are_shown_that_need_a_look(state):
    lines = shown(state, View())
    assert len(lines) <= 24
    assert ids(lines)[0] == 7
    assert {8, 9, 10} <= set(ids(lines)[:5])
    text = "\n".join(lines)
    assert "ended" in lines[0]
    assert "virtual clock: 500.0 simulated s" in lines[0]
    assert "round s*" in text
    assert "* simulated seconds" in text
    assert "1 refused  1 clients lost  0 dropped" in text
    assert "silent [bold]for 10 s[/bold]" in text  # no sentence is taken for markup
    assert "of 1000 (all)  sorted by need" in text


def test_keys_sort_filter_and_scroll(state):
    view = View()
    for key in split(b"sss"):
        assert view.press(key, 10)
    assert view.sort == "updates"
    assert ids(shown(state, view))[:2] == [9, 10]
    view.press("r", 10)
    assert ids(shown(state, view))[0] == 999
    view.press("f", 10)
    assert ids(shown(state, view)) == [7]
    for key in ("f", "f", "f", "S", "S"):
        view.press(key, 10)
    assert view.sort == "client"
    for key in split(b"\x1b[6~\x1b[B"):
        view.press(key, 10)
    assert ids(shown(state, view))[0] == 11
    view.offset = 10_000
    assert ids(shown(state, view))[-1] == 999
    assert not view.press("q", 10)


def test_keys_are_told_apart():
    assert split(b"s\x1b[A\x1b[5~\x1b[20~q") == ["s", "up", "page up", "q"]
    assert split(b"") == ["q"]


def test_a_line_says_which_seconds_it_shows(state):
    said = line(state)
    assert said.startswith("ended  500.0 simulated s  1002 updates (-/s)  gamma 0.5 eta 0")
    assert said.endswith("1 refused  1 lost  goes on without client 7: silent [bold]for 10 s[/bold]")
