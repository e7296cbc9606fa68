"""How a rank waits, on a clock that stands still but for what a test says; bells between threads, as between ranks."""

import ctypes
import threading

import numpy as np
import pytest

from asyncfeded.mpi import waiting
from asyncfeded.mpi.waiting import Backoff

PR_GET_TIMERSLACK = 30
compiled = pytest.mark.skipif(waiting._kernel is None, reason="no compiled kernel")


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
    assert backoff.looks
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


@pytest.mark.parametrize(("lost_s", "rests_s"), [(0.1e-3, 0.0), (1e-3, 0.1), (4e-3, 0.4), (60.0, 1.0)])
def test_a_rank_that_loses_its_core_only_sleeps_for_a_hundred_times_as_long(clock, lost_s, rests_s):
    """At most a second; what an interrupt takes is no loss."""
    backoff = Backoff("auto")
    look(backoff, clock, 1)
    look(backoff, clock, 1, took_s=lost_s, on_core=False)
    since = clock.now
    backoff.reset()
    clock.slept.clear()
    while clock.now - since < 1.5:
        look(backoff, clock, 4, took_s=5e-6)  # within the 20 us that it would look for
        backoff.reset()
        if not clock.slept:
            break
        clock.slept.clear()
        clock.pass_s(5e-3)
    assert clock.now - since == pytest.approx(rests_s, abs=6e-3)


def test_work_between_two_looks_is_no_loss(clock):
    """The server tests batches between two looks."""
    backoff = Backoff("auto")
    for _ in range(5):
        look(backoff, clock, 1)
        look(backoff, clock, 1, took_s=4e-3)
        backoff.reset()
    clock.slept.clear()
    look(backoff, clock, 2)
    assert clock.slept == []


@compiled
def test_who_sleeps_at_a_bell_is_woken_by_it():
    """Within a minute and not within the ten that he would sleep; an earlier ring lets him not sleep at all."""
    page = np.zeros(2 * waiting.LINE // 4, np.uint32)
    bell, of_sender = (waiting._kernel.Bell(page, 1) for _ in range(2))
    heard = []
    sleeper = threading.Thread(target=lambda: heard.append(bell.sleep(0, 600.0)))
    sleeper.start()
    while not page[waiting.LINE // 4 + 1]:  # he is about to sleep, or sleeps
        pass
    of_sender.ring()
    sleeper.join(60)
    assert heard == [1]
    assert bell.sleep(0, 600.0) == bell.rung() == 1
    assert page[0] == 0, "the other bell is quiet"


@compiled
def test_a_bell_that_does_not_ring_is_left_in_time():
    bell = waiting._kernel.Bell(np.zeros(waiting.LINE // 4, np.uint32), 0)
    assert bell.sleep(0, 1e-3) == 0


@compiled
def test_a_page_has_so_many_bells():
    with pytest.raises(ValueError, match="the page has no such bell"):
        waiting._kernel.Bell(np.zeros(waiting.LINE // 4, np.uint32), 1)


class Bell:
    """It rings while a rank sleeps at it, where a test says so."""

    def __init__(self, clock):
        self.clock, self.rings, self.now_rung = clock, False, 7

    def rung(self):
        return self.now_rung

    def sleep(self, rung, seconds):
        self.clock.sleep(seconds)
        self.now_rung += self.rings
        return self.now_rung


@pytest.fixture
def bell(clock, monkeypatch):
    bell = Bell(clock)
    monkeypatch.setattr(waiting, "_own", bell)
    return bell


def test_who_was_rung_for_looks_thrice_and_sleeps_10_us(clock, bell):
    """MPI takes in one thing with each look: an acknowledgement, a header, the weights behind it."""
    backoff, bell.rings = Backoff("yield"), True
    look(backoff, clock, 7)  # the first sleep, two more looks in vain, a sleep after the third, and so on
    assert clock.slept == pytest.approx([1e-5, 1e-5, 1e-5])


def test_who_is_rung_for_every_time_sleeps_longer_at_once(clock, bell):
    """Twice as long with every message, up to 5 ms; 10 us again after one that came without a ring."""
    backoff, first_s = Backoff("yield"), []
    for rings in [True] * 11 + [False] * 2:
        clock.slept.clear()
        bell.rings = rings
        look(backoff, clock, 3)
        first_s.append(clock.slept[0])
        backoff.reset()
    assert first_s == pytest.approx([1e-5 * 2**i for i in range(9)] + [5e-3] * 3 + [1e-5])


def test_who_was_rung_for_while_it_looked_was_not_late(clock, bell):
    """Its sleep ended in time, and it found the message before it heard the bell."""
    backoff = Backoff("yield")
    look(backoff, clock, 1)
    bell.now_rung += 1
    backoff.reset()
    look(backoff, clock, 1)
    assert clock.slept == pytest.approx([1e-5, 2e-5])


def test_who_was_rung_for_sleeps_up_to_5_ms(clock, bell):
    """And up to 2 ms after a message that came without a ring."""
    backoff, bell.rings = Backoff("yield"), True
    for longest_s in (5e-3, 2e-3):
        look(backoff, clock, 3)
        backoff.reset()
        bell.rings = False
        look(backoff, clock, 20)
        assert clock.slept[-2:] == pytest.approx([longest_s] * 2)
        backoff.reset()


def test_nobody_is_woken_where_there_are_no_bells(monkeypatch):
    monkeypatch.setattr(waiting, "_bells", {})
    assert waiting.bell(waiting.MPI.COMM_WORLD, 0)() == 0


@compiled
def test_the_system_is_asked_to_end_sleeps_on_time():
    """In a thread of its own: the other tests keep what they have."""
    slack = []

    def ask():
        Backoff("yield")
        libc = ctypes.CDLL(None)
        slack.append(libc.prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert slack == [1]  # ns
