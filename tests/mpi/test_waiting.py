"""How a rank waits, on a clock that stands still but for what a test says."""

from types import SimpleNamespace

import pytest

from asyncfeded.mpi import waiting
from asyncfeded.mpi.waiting import Backoff, wake_early


class Request:
    def __init__(self, tests):
        self.tests = tests

    def Test(self):
        self.tests -= 1
        return self.tests <= 0


class Clock:
    """Every look takes 10 us of time and of the processor; a sleep takes what it should."""

    def __init__(self):
        self.now, self.cpu, self.slept = 1.0, 1.0, []

    def pass_s(self, seconds, on_core=True):
        self.now += seconds
        self.cpu += seconds * on_core

    def perf_counter(self):
        return self.now

    def thread_time(self):
        return self.cpu

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.pass_s(seconds, on_core=False)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(waiting, "time", clock)
    return clock


def look(backoff, clock, times, took_s=10e-6, on_core=True):
    """Look in vain."""
    for _ in range(times):
        clock.pass_s(took_s, on_core)
        backoff.pause()


def test_a_spinning_rank_never_sleeps(clock):
    backoff = Backoff("spin")
    backoff.wait(Request(100))
    assert backoff.spins
    assert clock.slept == []


def test_a_yielding_rank_sleeps_10_us_doubling_to_2_ms(clock):
    Backoff("yield").wait(Request(12))
    assert clock.slept == pytest.approx([1e-5, 2e-5, 4e-5, 8e-5, 16e-5, 32e-5, 64e-5, 128e-5, 2e-3, 2e-3, 2e-3])


def test_what_is_there_is_not_waited_for(clock):
    Backoff("yield").wait(Request(1))
    assert clock.slept == []


def test_every_wait_begins_short(clock):
    backoff = Backoff("yield")
    for _ in range(2):
        backoff.wait(Request(3))
    assert clock.slept == pytest.approx([1e-5, 2e-5, 1e-5, 2e-5])


def test_a_rank_looks_20_us_at_first_and_then_sleeps(clock):
    backoff = Backoff("auto")
    look(backoff, clock, 5)  # the wait begins with the first look that finds nothing
    assert clock.slept == pytest.approx([1e-5, 2e-5, 4e-5])
    backoff.reset()
    look(backoff, clock, 2)
    assert len(clock.slept) == 3


def test_a_rank_looks_twice_as_long_as_its_messages_take_to_come_if_that_is_short(clock):
    backoff = Backoff("auto")
    for _ in range(100):
        look(backoff, clock, 6)  # each comes after 50 us, the running mean ends there, and the look is 100 us
        backoff.reset()
    clock.slept.clear()
    look(backoff, clock, 10)
    assert clock.slept == []
    look(backoff, clock, 1)
    assert clock.slept == pytest.approx([1e-5])
    for _ in range(100):
        backoff.reset()
        look(backoff, clock, 2, took_s=1e-3)  # now after a millisecond: looking for it would not help
    backoff.reset()
    clock.slept.clear()
    look(backoff, clock, 3)
    assert clock.slept == pytest.approx([1e-5])


def test_a_rank_that_lost_its_core_only_sleeps_for_a_second(clock):
    backoff = Backoff("auto")
    look(backoff, clock, 1)
    look(backoff, clock, 1, took_s=4e-3, on_core=False)
    assert clock.slept == pytest.approx([1e-5])
    backoff.reset()
    look(backoff, clock, 1)
    assert clock.slept == pytest.approx([1e-5, 1e-5])
    clock.pass_s(1.0)
    backoff.reset()
    look(backoff, clock, 2)
    assert len(clock.slept) == 2


def test_work_between_two_looks_is_no_loss(clock):
    """The server tests a batch between two looks."""
    backoff = Backoff("auto")
    look(backoff, clock, 1)
    look(backoff, clock, 1, took_s=4e-3)
    backoff.reset()
    look(backoff, clock, 2)
    assert len(clock.slept) == 1


def test_the_system_is_asked_to_end_sleeps_on_time():
    wake_early()
    assert waiting.ctypes.CDLL(None).prctl(waiting.PR_GET_TIMERSLACK, 0, 0, 0, 0) == 1  # ns


def test_another_system_has_no_such_call(monkeypatch):
    monkeypatch.setattr(waiting, "ctypes", SimpleNamespace(CDLL=lambda name: SimpleNamespace()))
    wake_early()
