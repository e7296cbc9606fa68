"""What the user sees during a run: a live view on a terminal, a line every few seconds elsewhere, and the log.

Everything goes to standard error and to log.txt in the run's folder; standard output is for the result.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from asyncfeded.training.server import Server

CLIENTS_SHOWN = 16
"""Number of clients in the live view; if there are more, it shows the fastest and the slowest."""


class Screen(Console):
    """A console whose output may have no taker any more: a pipe that is closed, a disk that is full. The run goes on."""

    def print(self, *words: Any, **how: Any) -> None:  # noqa: ANN401, as in rich
        """Print, or give up printing for good."""
        try:
            super().print(*words, **how)
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Let what is still in the buffers go nowhere: at the end of the program it would fail again."""
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), self.file.fileno())


class Progress:
    """Shows a run and logs it. Rank 0.

    Args:
        log: the log file.
        check: raises OSError if the log's folder must not be written any more.

    Attributes:
        LIVE_S: seconds between two views on a terminal.
        LINE_S: seconds between two lines; in a long run a twentieth of the time so far, at most a minute.
    """

    LIVE_S = 0.25
    LINE_S = 5.0

    def __init__(self, log: Path, check: Callable[[], None] = lambda: None) -> None:
        self._check = check
        self._console = Screen(stderr=True, highlight=False)
        self._file = log.open("a", encoding="utf-8")
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._interactive = self._console.is_interactive and self._console.is_terminal
        self._next_view = self._next_line = 0.0

    def __enter__(self) -> "Progress":
        if self._interactive:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()
        if error is not None:
            self.log(f"ended by {type(error).__name__}: {error}")
        with suppress(OSError):
            self._file.close()

    def say(self, text: str) -> None:
        """Write a line for the user and to the log."""
        self.log(text)
        self._console.print(text, markup=False, soft_wrap=True)

    def tick(self, server: Server) -> None:
        """Show the state of the server, if it is time."""
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + min(max(self.LINE_S, server.elapsed_s / 20), 60)  # less often in a long run
            line = status(server)
            self.log(line)
            if not self._interactive:
                self._console.print(line, markup=False, soft_wrap=True)
        if self._interactive and now >= self._next_view:
            self._next_view = now + self.LIVE_S
            self._live.update(view(server), refresh=True)

    def log(self, text: str) -> None:
        """Write a line to the log only."""
        with suppress(OSError):  # a full disk must not end the run
            self._check()
            print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=self._file, flush=True)


def status(server: Server) -> str:
    """One line: time, updates and their rate, the metric of the goal, staleness, K and shares, time left."""
    elapsed = server.elapsed_s
    parts = [f"{elapsed:6.1f} s", f"{server.state.updates} updates ({server.state.updates / max(elapsed, 1e-9):.1f}/s)"]
    if score := server.state.score:
        goal, metric = server.settings.metrics.goal, server.settings.metrics.of_goal
        parts.append(f"{goal} {metric.text(score.values[goal])} (version {score.version})")
    if server.recent:
        gamma, eta = np.median(np.array(server.recent), axis=0)
        parts.append(f"gamma {gamma:.2f} eta {eta:.3f}")
        parts.append(f"K {server.state.epochs.min()}-{server.state.epochs.max()}")
        shares = server.state.counts / max(server.state.updates, 1)
        parts.append(f"share {shares.min():.0%}-{shares.max():.0%}")
    if server.state.refused:
        parts.append(f"{server.state.refused} refused")
    if left := time_left(server):
        parts.append(f"{left} left")
    return "  ".join(parts)


def view(server: Server) -> Group:
    """The live view: the status line and a row for each client."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("client", "K", "updates", "share"):
        table.add_column(column, justify="right")
    table.add_column("")
    most = max(int(server.state.counts.max()), 1)
    for client in fastest_and_slowest(server.state.counts, CLIENTS_SHOWN):
        count = int(server.state.counts[client])
        share = count / max(server.state.updates, 1)
        bar = "━" * round(30 * count / most)
        table.add_row(str(client), str(server.state.epochs[client]), str(count), f"{share:.1%}", bar)
    return Group(Text(status(server)), table)


def fastest_and_slowest(counts: np.ndarray, shown: int) -> np.ndarray:
    """The clients to show of many: half of them those with the most updates, half those with the fewest.

    Args:
        counts: int (clients,), updates of each client.
        shown: how many to show, even.

    Returns:
        int (at most `shown`,): ids in order of their updates, most first; all ids in their own order if they are no more.
    """
    if len(counts) <= shown:
        return np.arange(len(counts))
    order = np.argsort(-counts, kind="stable")
    return np.concatenate([order[: shown // 2], order[-shown // 2 :]])


def time_left(server: Server) -> str:
    """The time until the first limit, at the rate so far, as text; empty while unknown."""
    elapsed, limits = server.elapsed_s, server.settings.limits
    left = []
    if limits.seconds:
        left.append(limits.seconds - elapsed)
    if limits.updates and server.state.updates:
        left.append((limits.updates - server.state.updates) * elapsed / server.state.updates)
    if not left:
        return ""
    seconds = max(0.0, min(left))
    return (
        f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    )
