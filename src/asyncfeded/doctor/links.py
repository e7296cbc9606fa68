"""Measurements of the links between server and clients: latency, bandwidth, large messages, and clocks.

Clients wait for the server's questions without occupying a core; only the client that is asked is awake.
"""

import os
import time
from collections.abc import Callable

import numpy as np

from asyncfeded.doctor.problem import Link
from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.waiting import Backoff
from asyncfeded.mpi.world import World

PINGS, PING = 60, 8
"""Round trips for the latency, after one of warm-up, and their bytes. The answer carries the client's time."""
LOADS, LOAD = 4, 4 << 20
"""Round trips for the bandwidth, after one of warm-up, and their bytes."""
LARGE = (1 << 31) + 8
"""Bytes of one message, more than an int can hold. The message is float32, as models are: Open MPI 5.0.11 refuses it if
each byte is an element."""
DEADLINE_S = 60.0
LEAVE, ECHO, TAKE = range(3)
"""What the server asks for, in a message (what, bytes or status, times)."""
QUESTION, ANSWER, SENT, MESSAGE = range(4)  # tags


class SilentError(Exception):
    """The client named by the argument did not answer in time. The question cannot be cancelled; the job must be aborted."""


def ask(world: World, rank: int, what: int, number: int = 0, times: int = 0) -> None:
    """Tell a client what to do next. Rank 0."""
    world.comm.Send(np.array([what, number, times]), rank, QUESTION)


def answer(world: World) -> int:
    """Do what the server asks, until it says to leave. Client ranks. Returns the exit status."""
    question = np.zeros(3, np.int64)
    while True:
        Backoff().wait(world.comm.Irecv(question, 0, QUESTION))
        what, number, times = question.tolist()
        if what == LEAVE:
            return int(number)
        if what == ECHO:
            message = np.zeros(number, np.uint8)
            for _ in range(times):
                request = world.comm.Irecv(message, 0, MESSAGE)
                while not request.Test():
                    os.sched_yield()
                message[:8].view(np.float64)[0] = time.time()
                world.comm.Send(message, 0, ANSWER)
        else:
            _take_large(world)


def measure(world: World, rank: int) -> Link:
    """Measure the link to one client. Rank 0.

    Raises:
        SilentError: the client does not answer.
    """
    ask(world, rank, ECHO, PING, 1 + PINGS)
    rounds = [_round(world, rank, PING) for _ in range(1 + PINGS)][1:]
    ask(world, rank, ECHO, LOAD, 1 + LOADS)
    loads = [_round(world, rank, LOAD) for _ in range(1 + LOADS)][1:]
    best = min(rounds)
    latency_s = float(np.median([took for took, _ in rounds])) / 2
    return Link(rank, latency_s, 2 * LOAD / float(np.median([took for took, _ in loads])), best[1], best[0] / 2)


def send_large(world: World, rank: int) -> str:
    """Send LARGE bytes in one message to a client. Rank 0. Returns what went wrong; empty if nothing did.

    Raises:
        SilentError: the message does not arrive in time.
    """
    ask(world, rank, TAKE)
    problem_text = np.zeros(1, "S200")
    _wait(world.comm.Irecv(problem_text.view(np.uint8), rank, ANSWER), rank)
    if problem := str(problem_text[0], errors="replace"):
        return problem
    message = np.zeros(LARGE // 4, np.float32)  # only the marks are written: it takes almost no memory
    message[_marks()] = [1, 2, 3, 4]
    try:
        request = world.comm.Isend(message, rank, MESSAGE)
    except (MPI.Exception, ValueError, OverflowError) as error:
        world.comm.Send(np.array([0]), rank, SENT)
        return str(error)
    world.comm.Send(np.array([1]), rank, SENT)
    _wait(request, rank)
    _wait(world.comm.Irecv(problem_text.view(np.uint8), rank, ANSWER), rank)
    return str(problem_text[0], errors="replace")


def _take_large(world: World) -> None:
    """The client's part of `send_large`: it reports whether it can receive, and then what was wrong. Client ranks."""

    def say(text: str) -> None:
        world.comm.Send(np.array([text.encode()[:200]], "S200").view(np.uint8), 0, ANSWER)

    try:
        message = np.zeros(LARGE // 4, np.float32)
        request = world.comm.Irecv(message, 0, MESSAGE)
    except (MPI.Exception, ValueError, OverflowError, MemoryError) as error:
        return say(str(error) or "no memory")
    say("")
    sent = np.zeros(1, np.int64)
    world.comm.Recv(sent, 0, SENT)
    if not sent[0]:
        request.Cancel()
        request.Wait()
        return None
    request.Wait()
    return say("" if message[_marks()].tolist() == [1, 2, 3, 4] else "it arrived with wrong bytes")


def _marks() -> list[int]:
    return [0, (1 << 29) - 1, 1 << 29, LARGE // 4 - 1]


def _round(world: World, rank: int, size: int) -> tuple[float, float]:
    """Seconds of a round trip of so many bytes, and how far the client's clock is ahead at the middle of the trip."""
    message, back = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    answered = world.comm.Irecv(back, rank, ANSWER)
    began, began_at = time.perf_counter(), time.time()
    sent = world.comm.Isend(message, rank, MESSAGE)
    _wait(answered, rank, os.sched_yield)
    took = time.perf_counter() - began
    sent.Wait()
    return took, float(back[:8].view(np.float64)[0]) - (began_at + took / 2)


def _wait(request: MPI.Request, rank: int, pause: Callable[[], None] | None = None) -> None:
    """Wait until the request is complete. Sleeps between polls, unless another pause is given.

    Raises:
        SilentError: it took longer than DEADLINE_S.
    """
    until, pause = time.monotonic() + DEADLINE_S, pause or Backoff().pause
    while not request.Test():
        if time.monotonic() > until:
            raise SilentError(rank)
        pause()
