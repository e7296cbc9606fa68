"""The trackers of a run, as its server sees them: processes (tracker.py) that it starts, hears and ends. Rank 0."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from asyncfeded.mpi.origin import without_rank
from asyncfeded.mpi.tether import tethered

END_S = 30.0
"""Seconds that all trackers together have at the end of a run to give their last points away."""


class Trackers:
    """Follows a run with trackers while the `with` block lasts. Nothing of it is on the path of an update.

    Args:
        names: see `config.Recording.trackers`.
        run_dir: folder of the run, whose record exists.
        after: version of the model at which the job begins; earlier points were given away before.
        say: shows a sentence to the user; any thread calls it.
    """

    def __init__(self, names: tuple[str, ...], run_dir: Path, after: int, say: Callable[[str], None]) -> None:
        self._names, self._run_dir, self._after, self._say = names, run_dir, after, say
        self._running: list[tuple[str, subprocess.Popen[str], threading.Thread]] = []
        self._told: set[str] = set()  # those that have said what they have lost

    def __enter__(self) -> "Trackers":
        for name in self._names:
            command = [sys.executable, "-m", "asyncfeded.run.tracker", name, str(self._run_dir), str(self._after)]
            process = subprocess.Popen(
                tethered(command, signal.SIGKILL),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=without_rank(os.environ),
            )
            listener = threading.Thread(target=self._listen, args=(name, process), name=name, daemon=True)
            listener.start()
            self._running.append((name, process, listener))
        return self

    def __exit__(self, *error: object) -> None:
        """Let all give their last points away; end those that take too long."""
        deadline = time.monotonic() + END_S
        for _, process, _ in self._running:
            assert process.stdin
            with suppress(OSError):
                process.stdin.close()
        for name, process, listener in self._running:
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                if name not in self._told:
                    self._say(f"{name}: has not taken its last points within {END_S:.0f} s; they are lost")
            else:
                listener.join(1.0)
                if process.returncode and name not in self._told:
                    self._say(f"{name}: ended with status {process.returncode}; its points are lost")
            assert process.stdout
            process.stdout.close()

    def _listen(self, name: str, process: subprocess.Popen[str]) -> None:
        """Show what a tracker says; what it has said explains its end."""
        assert process.stdout
        with suppress(ValueError, OSError):  # closed at the end
            for text in process.stdout:
                self._told.add(name)
                if text.strip():
                    self._say(text.strip())
