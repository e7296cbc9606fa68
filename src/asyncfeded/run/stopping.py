"""What signals ask of a run, on every rank, from the start of its job to its end.

SIGINT and SIGTERM ask it to stop, SIGUSR1 asks for a checkpoint. A launcher forwards a signal to all ranks. While a rank
prepares, a wish to stop interrupts what it does, and the ranks end together (`plan.agree_on`). While the run trains, the
server alone does what is asked, and the workers go on until it stops them. A wish that comes between two phases is kept
for the next one. There is one `asked` in a process, as there is one handler of a signal.
"""

import atexit
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

T = TypeVar("T")
TOGETHER_S = 1.0
"""Signals within so many seconds are one wish: who signals a whole job reaches a rank twice, also through its launcher."""


@dataclass
class Asked:
    """What signals have asked for."""

    stop: bool = False
    since_s: float = 0.0
    """When the first wish to stop came (time.monotonic)."""
    checkpoint: bool = False
    listens: bool = False
    """Whether there is a run in this process."""
    interrupts: bool = False
    """Whether a wish to stop interrupts this rank at once."""


asked = Asked()


class StopError(ValueError):
    """The run was asked to stop before training began."""


def listen() -> None:
    """From now on, keep what signals ask for in `asked`. A second wish to stop, a moment later, ends the process at once.

    While Python ends, nothing is left to ask for: who signals a rank then does not change the status of a run that is done.
    """
    asked.__dict__.update(vars(Asked(listens=True)))  # without what was asked of a run before this one
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    signal.signal(signal.SIGUSR1, _keep)
    atexit.register(ignore, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # hydra sends SIGUSR1 when any rank has ended


def ignore(*numbers: signal.Signals) -> None:
    """From now on, these signals ask for nothing, also while Python ends, when it has dropped its handlers."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def unless_asked(prepare: Callable[[], T]) -> T:
    """Return what `prepare` makes, unless this rank is asked to stop before or meanwhile: then it is interrupted.

    Raises:
        StopError: it was asked to stop.
    """
    try:
        asked.interrupts = True
        if not asked.stop:
            made = prepare()
            asked.interrupts = False
            if not asked.stop:  # `prepare` may have caught the interrupt
                return made
    except KeyboardInterrupt:
        if not asked.stop:  # nobody listens: Ctrl-C ends the program
            raise
    finally:
        asked.interrupts = False
    raise StopError("a signal has asked the run to stop before its training began; the same command begins it again")


def _stop(number: int, frame: FrameType | None) -> None:
    now_s = time.monotonic()
    if asked.stop and now_s - asked.since_s > TOGETHER_S:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.raise_signal(number)
    if not asked.stop:
        asked.stop, asked.since_s = True, now_s
    if asked.interrupts:
        asked.interrupts = False
        raise KeyboardInterrupt


def _keep(number: int, frame: FrameType | None) -> None:
    asked.checkpoint = True
