"""The mpiexecs that a study has started: they and their ranks end with it, whatever ends it."""

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from asyncfeded.mpi import launcher
from asyncfeded.mpi.tether import tethered

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Children:
    """Starts mpiexecs from any thread, and ends all of them."""

    def __init__(self) -> None:
        self._lock, self._running = threading.Lock(), set[subprocess.Popen[bytes]]()
        self._ended = False

    def run(self, command: Sequence[str], env: dict[str, str], log: Path, look: Callable[[], None]) -> int:
        """Run a command to its end, its output in a file; call `look` every second.

        Returns its status; that of SIGTERM, if all have been ended.
        """
        number = launcher.ending_signal()
        with self._lock, log.open("w") as out:
            if self._ended:
                return -signal.SIGTERM
            child = subprocess.Popen(tethered(command, number), env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
            self._running.add(child)
        while True:
            try:
                status = child.wait(1)
                break
            except subprocess.TimeoutExpired:
                look()
        with self._lock:
            self._running.remove(child)
        return status

    def end(self) -> None:
        """End all that run; no other starts."""
        with self._lock:
            self._ended = True
            for child in self._running:
                child.send_signal(launcher.ending_signal())


@contextmanager
def end_by_signals(say: Callable[[str], None]) -> Iterator[None]:
    """Inside, SIGINT, SIGTERM and SIGHUP raise SystemExit with the status of a shell. What is ignored stays ignored."""

    def end(number: int, frame: FrameType | None) -> None:
        say(f"ended by {signal.Signals(number).name}; the same command goes on with the runs that are not done")
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
