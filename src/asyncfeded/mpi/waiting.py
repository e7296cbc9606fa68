"""How a rank waits: it looks for a message, and gives its core away where looking does not help.

Who looks without a break notices a message at once, but has used up its share of the core when other processes want it too,
and then is late by whole time slices (4 ms). Who sleeps is served first. So a rank looks for about as long as its messages
take to come, if that is short, and then sleeps at its bell: the ranks of a host share a page of memory, and who has sent a
message to another rank of it rings its bell, which wakes it at once. Where nobody rings (another host, no compiled kernel)
it looks again after times that grow, and where somebody always does it sleeps long at once, since every look in vain costs
what it would need when the message comes. If it loses its core while it looks, it only sleeps for a while. What it measures
in its own run decides.
"""

import mmap
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import numpy as np

from asyncfeded.mpi.launcher import MPI, leave_ended_job

try:
    from asyncfeded import _kernel
except ImportError:  # installed without a C++ compiler
    _kernel = None  # type: ignore[assignment]

Wait = Literal["auto", "spin", "yield"]
LOOK_S = (20e-6, 200e-6)
"""The shortest and the longest time that a rank looks before it sleeps."""
LOST_S = 0.2e-3
"""A rank that got no processor time for so long while it looked has lost its core to another process."""
LOST_SHARE, REST_S = 0.01, 1.0
"""It then only sleeps for so long that it loses at most this share of its time by looking, and for this at most."""
SLEEP_S = (10e-6, 2e-3)
"""The first sleep, and the longest; each is twice the one before."""
RUNG_S = 5e-3
"""The longest sleep after a message that came with a ring. Each of these in a row doubles the first sleep, up to it."""
LOOKS = 3
"""So often a rank that was rung for looks before it sleeps again: MPI takes in one thing with each look."""
PAUSES = 128
"""After so many pauses, 0.7 s at most, a rank looks whether another one has ended the job."""
SLICE_S = 0.1e-3
"""The time slice that a rank asks for: where cores are shared, Linux (6.12 and later) runs a process that wakes up at once
if its slice is shorter than that of the one that runs."""
LINE = 64
"""Bytes of a bell."""
MEETING = np.dtype([("process", np.int64), ("file", np.int64), ("secret", np.uint8, LINE)])
"""Where the first rank of a host has the page, and what the last line of it holds."""
_bells: "dict[int, _kernel.Bell]" = {}  # by rank in MPI_COMM_WORLD, of this host
_own: "_kernel.Bell | None" = None  # that of this rank; a process is one


class Backoff:
    """How a rank waits for messages.

    Args:
        wait: spin (look without a break: every rank needs a core of its own), yield (sleep between two looks) or auto (look
            first, and sleep then).
    """

    def __init__(self, wait: Wait = "yield") -> None:
        self._wait = wait
        self._look_s = LOOK_S[0]
        self._comes_s = 0.0  # how long a message takes to come, as a running mean
        self._since = self._last = 0.0  # the begin of this wait (0: there is none), and the last look
        self._cpu = 0.0  # time on a core until this wait began
        self._rests_until = 0.0
        self._pauses = self._looks_left = 0  # in all, and since it was rung for
        self._sleep_s = self._first_s = SLEEP_S[0]  # the next sleep, and the first one of a wait
        self._slept = self._late = False  # whether it has slept in this wait, and whether nobody ended its last sleep
        self._bell = _own
        self._rung = self._bell.rung() if self._bell else 0
        if wait != "spin" and _kernel:
            _kernel.be_prompt(SLICE_S)

    @property
    def looks(self) -> bool:
        """Whether it may keep a core busy."""
        return self._wait != "yield"

    def pause(self) -> None:
        """Nothing has come: look again at once, or let other processes run, each time for longer.

        If another rank has ended the job, this process ends.
        """
        self._pauses += 1
        if not self._pauses % PAUSES:
            leave_ended_job()
        if self._wait == "spin" or self._looks():
            return
        sleep_s, self._slept = self._sleep_s, True
        self._sleep_s = min(2 * sleep_s, RUNG_S if self._first_s > SLEEP_S[0] else SLEEP_S[1])
        if self._bell is None:
            time.sleep(sleep_s)
            return
        rung = self._bell.sleep(self._rung, sleep_s)
        self._late = rung == self._rung
        if not self._late:
            self._rung, self._sleep_s, self._looks_left = rung, SLEEP_S[0], LOOKS

    def reset(self) -> None:
        """Something has come: the next wait begins."""
        if self._slept and self._bell:
            late = self._late and self._bell.rung() == self._rung
            self._first_s = SLEEP_S[0] if late else min(2 * self._first_s, RUNG_S)
        self._sleep_s, self._slept = self._first_s, False
        if self._since:
            waited_s, self._since = time.perf_counter() - self._since, 0.0
            self._comes_s += (min(waited_s, 10 * LOOK_S[1]) - self._comes_s) / 16
            self._look_s = 2 * self._comes_s if LOOK_S[0] <= 2 * self._comes_s <= LOOK_S[1] else LOOK_S[0]

    def wait(self, request: MPI.Request) -> None:
        """Wait until the request is complete."""
        while not request.Test():
            self.pause()
        self.reset()

    def _looks(self) -> bool:
        """Whether to look again before the next sleep."""
        self._looks_left -= 1
        if self._looks_left > 0:
            return True
        if self._wait == "yield" or self._slept:
            return False
        now = time.perf_counter()
        if not self._since:
            self._since, self._cpu = now, time.thread_time()
        elif now - self._last > LOST_S and (lost_s := now - self._since - (time.thread_time() - self._cpu)) > LOST_S:
            self._rests_until = now + min(lost_s / LOST_SHARE, REST_S)
        self._last = now
        return now - self._since < self._look_s and now >= self._rests_until


def bell(comm: MPI.Comm, rank: int) -> Callable[[], object]:
    """What wakes a rank of a communicator, to be called when a message to it was given to MPI.

    It does nothing for a rank that has no bell.
    """
    if not _bells or comm == MPI.COMM_NULL or comm.Is_inter():
        return int
    (found,) = comm.Get_group().Translate_ranks([rank], MPI.COMM_WORLD.Get_group())
    return _bells[found].ring if found in _bells else int


def hang_bells(local: MPI.Intracomm, ranks: list[int]) -> None:
    """Give each rank of this host a bell, if all of them can share a page. Collective in `local`.

    The page is a file without a name, so that nothing of it is left, however the ranks end.

    Args:
        local: the ranks of this host.
        ranks: the same in MPI_COMM_WORLD.
    """
    global _own  # as MPI itself, it is of the process
    _bells.clear()
    _own, size, page, shared = None, LINE * (local.size + 1), None, np.zeros(1, np.int64)
    meeting = np.zeros(1, MEETING)
    if local.rank == 0:
        meeting["secret"] = np.frombuffer(secrets.token_bytes(LINE), np.uint8)
        with suppress(OSError):
            meeting["process"], meeting["file"] = os.getpid(), os.memfd_create("asyncfeded-bells")
            os.pwrite(int(meeting["file"][0]), meeting["secret"].tobytes(), size - LINE)
    local.Bcast(meeting.view(np.uint8), 0)
    if meeting["process"][0] and _kernel:
        with suppress(OSError, ValueError):  # processes of their own namespaces do not find each other
            page = _open("/proc/{}/fd/{}".format(*meeting[["process", "file"]][0].item()), size)
            shared[0] = page[-LINE // 4 :].tobytes() == meeting["secret"].tobytes()
    local.Allreduce(MPI.IN_PLACE, shared, MPI.MIN)
    if local.rank == 0 and meeting["file"][0]:
        os.close(int(meeting["file"][0]))
    if shared[0] and page is not None:
        _bells.update({rank: _kernel.Bell(page, place) for place, rank in enumerate(ranks)})
        _own = _bells[ranks[local.rank]]


def _open(path: str, size: int) -> np.ndarray:
    """uint32: the page."""
    file = os.open(path, os.O_RDWR)
    try:
        return np.frombuffer(mmap.mmap(file, size), np.uint32)
    finally:
        os.close(file)
