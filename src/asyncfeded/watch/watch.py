"""Follows a run on a terminal until it ends: a screen with keys, plain lines, or JSON for programs."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.live import Live

from asyncfeded.store.follow import Follower
from asyncfeded.watch.keys import Keys, keys
from asyncfeded.watch.screen import View, line, render
from asyncfeded.watch.state import State

SCREEN_S, LINE_S = 1.0, 5.0
"""Seconds between two looks at the record, on a screen and for lines, where a user asks for nothing else."""


def watch(run_dir: Path, every_s: float, as_json: bool) -> None:
    """Show a run until it has ended, or until the user quits.

    Args:
        run_dir: its folder.
        every_s: seconds between two looks at the record; 0: as `SCREEN_S` and `LINE_S` say.
        as_json: whether to write a line of JSON for each look.

    Raises:
        ValueError: there is no record, or it is damaged.
    """
    console = Console(highlight=False)
    with Follower(run_dir) as follower:
        state = State(follower)
        if as_json:
            _lines(state, every_s or LINE_S, lambda: json.dumps(state.figures(), allow_nan=False))
        elif console.is_terminal and console.is_interactive:
            _screen(console, state, every_s or SCREEN_S)
        else:
            _lines(state, every_s or LINE_S, lambda: line(state))


def _lines(state: State, every_s: float, text: Callable[[], str]) -> None:
    while True:
        state.look()
        print(text(), flush=True)  # noqa: T201
        if state.phase == "ended":
            return
        time.sleep(every_s)


def _screen(console: Console, state: State, every_s: float) -> None:
    view = View()
    with ExitStack() as opened:
        typed: Keys | None = opened.enter_context(keys()) if sys.stdin.isatty() else None
        live = opened.enter_context(Live(console=console, screen=True, auto_refresh=False))
        going = True
        while going:
            state.look()
            due = time.monotonic() + every_s
            while going and (left := due - time.monotonic()) > 0:
                live.update(render(state, view, console.height), refresh=True)
                if state.phase == "ended":
                    going = False
                elif typed is None:
                    time.sleep(left)
                else:
                    going = all(view.press(key, max(console.height - 12, 1)) for key in typed.wait(left))
    console.print(line(state), markup=False, soft_wrap=True)
