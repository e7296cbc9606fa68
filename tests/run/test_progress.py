"""What a person reads while a run goes on, from a stand-in for the server."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from asyncfeded.config import Limits
from asyncfeded.run.progress import CLIENTS_SHOWN, Progress, status, time_left, view
from asyncfeded.training.evaluation import Score
from conftest import METRICS


def server(counts=(3, 1), epochs=(2, 5), elapsed_s=2.0, score=None, recent=(), refused=0, **limits):
    """A server as progress sees it: `counts` updates merged and K last sent, by client."""
    state = SimpleNamespace(
        updates=sum(counts), counts=np.array(counts), epochs=np.array(epochs), score=score, refused=refused
    )
    return SimpleNamespace(
        state=state, elapsed_s=elapsed_s, recent=recent, settings=SimpleNamespace(limits=Limits(**limits), metrics=METRICS)
    )


def shown(**state):
    """The lines of the view, as a terminal shows them."""
    console = Console(file=io.StringIO(), width=200)
    console.print(view(server(**state)))
    return console.file.getvalue().splitlines()


# --- the line


def test_the_line_tells_time_updates_and_rate():
    """Four updates in two seconds."""
    assert status(server()).strip().startswith("2.0 s  4 updates (2.0/s)")


def test_the_line_of_the_first_moment_divides_by_nothing():
    assert "0 updates (0.0/s)" in status(server(counts=(0, 0), elapsed_s=0.0))


def test_the_line_tells_the_last_score_and_its_version():
    assert "accuracy 0.8125 (version 3)" in status(server(score=Score(3, {"accuracy": 0.8125, "loss": 0.5})))


def test_the_line_tells_medians_of_staleness_bounds_of_K_and_shares():
    """gamma 1, 2, 9 and eta 0.5, 0.25, 0.1; K 2 and 5; shares 3/4 and 1/4."""
    line = status(server(recent=[(1.0, 0.5), (9.0, 0.1), (2.0, 0.25)]))
    assert "gamma 2.00 eta 0.250  K 2-5  share 25%-75%" in line


def test_the_line_before_the_first_update_has_no_staleness():
    line = status(server(counts=(0, 0)))
    assert "gamma" not in line
    assert "accuracy" not in line


@pytest.mark.parametrize(("refused", "told"), [(0, False), (2, True)])
def test_refused_updates_are_told_if_there_are_any(refused, told):
    assert ("2 refused" in status(server(refused=refused))) == told


def test_the_line_ends_with_the_time_left():
    assert status(server(seconds=10)).endswith("  8 s left")


# --- time left


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({"seconds": 10}, "8 s"),
        ({"updates": 10}, "3 s"),  # six more, at two a second
        ({"updates": 10, "seconds": 3}, "1 s"),
        ({"updates": 10, "seconds": 100}, "3 s"),
        ({"target": 0.9}, ""),
        ({"seconds": 1}, "0 s"),
        ({"seconds": 121}, "119 s"),
        ({"seconds": 122}, "2 min"),
        ({"seconds": 7202}, "2.0 h"),
        ({"seconds": 2 + 36 * 3600}, "36.0 h"),
    ],
)
def test_time_left_is_to_the_first_limit(limits, left):
    assert time_left(server(**limits)) == left


def test_time_left_is_unknown_before_the_first_update():
    assert time_left(server(counts=(0, 0), updates=10)) == ""


# --- the view


def test_the_view_is_the_line_and_a_row_for_each_client():
    line, _, *rows = shown(counts=(1, 6, 3), epochs=(2, 4, 5))
    assert line == status(server(counts=(1, 6, 3)))
    assert [row.split()[:4] for row in rows] == [
        ["0", "2", "1", "10.0%"],
        ["1", "4", "6", "60.0%"],
        ["2", "5", "3", "30.0%"],
    ]


def test_the_bars_are_in_proportion_to_the_updates():
    """The longest has 30 signs."""
    _, _, *rows = shown(counts=(6, 3, 0), epochs=(1, 1, 1))
    assert [row.count("━") for row in rows] == [30, 15, 0]


def test_the_view_before_the_first_update_is_all_zero():
    _, _, *rows = shown(counts=(0, 0))
    assert [row.split()[2:] for row in rows] == [["0", "0.0%"]] * 2


@pytest.mark.parametrize("clients", [CLIENTS_SHOWN, CLIENTS_SHOWN + 1, 100])
def test_of_many_clients_the_view_shows_the_fastest_and_the_slowest(clients):
    _, _, *rows = shown(counts=range(clients, 0, -1), epochs=[1] * clients)
    half = CLIENTS_SHOWN // 2
    assert [int(row.split()[0]) for row in rows] == [*range(half), *range(clients - half, clients)]


# --- the log


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.txt"


def test_what_is_said_goes_to_the_person_and_the_log_as_it_is(log, capsys):
    with Progress(log) as progress:
        progress.say("results in [bold]runs/a[/bold]")
    assert "results in [bold]runs/a[/bold]" in capsys.readouterr().err
    assert log.read_text().endswith(" results in [bold]runs/a[/bold]\n")


def test_nothing_goes_to_standard_output(log, capsys):
    with Progress(log) as progress:
        progress.say("hello")
        progress.tick(server())
    assert capsys.readouterr().out == ""


def test_a_line_is_logged_now_and_then_not_at_every_tick(log, monkeypatch):
    monkeypatch.setattr(Progress, "LINE_S", 1e9)
    with Progress(log) as progress:
        for _ in range(3):
            progress.tick(server())
    assert log.read_text().count("4 updates") == 1


def test_each_line_of_the_log_is_there_at_once_for_who_follows_it(log):
    with Progress(log) as progress:
        progress.tick(server())
        assert log.read_text().count("4 updates") == 1


def test_a_log_is_continued_not_written_over(log):
    for text in ("one", "two"):
        with Progress(log) as progress:
            progress.say(text)
    assert [line[-3:] for line in log.read_text().splitlines()] == ["one", "two"]


def test_a_line_of_the_log_begins_with_the_time(log):
    with Progress(log) as progress:
        progress.say("hello")
    time.strptime(log.read_text()[:19], "%Y-%m-%d %H:%M:%S")


def test_a_terminal_gets_the_view(log, capsys, monkeypatch):
    """Behind mpiexec rich sees a pipe, and takes these for word of a terminal."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with Progress(log) as progress:
        progress.tick(server())
    assert "client" in capsys.readouterr().err
    assert "4 updates" in log.read_text()


@pytest.mark.parametrize("place", ["/dev/full", "a closed pipe"])
def test_output_that_nobody_can_take_is_given_up_for_good(place):
    """In a process of its own. What was not written must not fail again when the program ends."""
    code = (
        "import sys; from asyncfeded.run.progress import Screen; screen = Screen(); "
        "[screen.print('a line ' * 9) for _ in range(3)]; print('also here'); sys.exit(7)"
    )
    read, write = os.pipe()
    os.close(read)
    with Path(place).open("w") if place[0] == "/" else os.fdopen(write, "w") as out:
        done = subprocess.run([sys.executable, "-c", code], stdout=out, stderr=subprocess.PIPE, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (7, "")
