"""What signals ask of a rank, before and while it trains."""

import signal
import subprocess
import sys

import pytest

from asyncfeded.run import stopping
from asyncfeded.run.stopping import Asked, StopError, unless_asked

STOPS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """A process of which nothing was asked yet, and which listens; afterwards its handlers are as before."""
    before = {number: signal.getsignal(number) for number in (*STOPS, signal.SIGUSR1)}
    monkeypatch.setattr(stopping, "asked", Asked())
    stopping.listen()
    yield stopping.asked
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPS)
def test_a_wish_to_stop_interrupts_what_a_rank_prepares(number):
    def prepare():
        signal.raise_signal(number)
        raise AssertionError

    with pytest.raises(StopError, match="a signal has asked the run to stop before its training began; the same command"):
        unless_asked(prepare)


def test_one_that_comes_between_two_phases_is_kept(asked):
    signal.raise_signal(signal.SIGTERM)
    assert asked.stop
    with pytest.raises(StopError):
        unless_asked(lambda: pytest.fail("it is not prepared"))


def test_one_that_a_task_swallows_is_heeded_all_the_same():
    def prepare():
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            return "loaded"
        raise AssertionError

    with pytest.raises(StopError):
        unless_asked(prepare)


def test_several_at_once_are_one_wish(asked):
    def prepare():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            for _ in range(3):
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(StopError):
        unless_asked(prepare)
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert asked.stop


def test_a_wish_for_a_checkpoint_interrupts_nothing_and_is_kept(asked):
    def prepare():
        signal.raise_signal(signal.SIGUSR1)
        return "loaded"

    assert unless_asked(prepare) == "loaded"
    assert (asked.stop, asked.checkpoint) == (False, True)


def test_without_a_wish_it_is_prepared_and_what_it_raises_is_raised():
    assert unless_asked(lambda: None) is None
    with pytest.raises(ValueError, match="no data"):
        unless_asked(refuse)


def refuse():
    raise ValueError("no data")


@pytest.mark.parametrize(("number", "times", "status"), [("SIGTERM", 1, 0), ("SIGTERM", 2, -15), ("SIGINT", 2, -2)])
def test_a_second_wish_a_moment_later_ends_the_process(number, times, status):
    code = (
        "import signal; from asyncfeded.run import stopping\n"
        "stopping.TOGETHER_S = -1\n"
        "stopping.listen()\n"
        f"for _ in range({times}): signal.raise_signal(signal.{number})\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == status


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_wish_that_comes_while_python_ends_changes_no_status(number):
    """Objects of a module are deleted after Python has dropped its handlers."""
    code = (
        "import signal; from asyncfeded.run import stopping\n"
        "class Late:\n"
        f"    def __del__(self, send=signal.raise_signal, number=signal.{number}): send(number); print('signalled')\n"
        "late = Late()\n"
        "stopping.listen()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "signalled\n"), ended.stderr
