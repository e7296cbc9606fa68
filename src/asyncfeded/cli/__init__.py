"""The command line runs the one command that argv names. It imports torch only where a command trains."""

import io
import os
import signal
import sys

from asyncfeded.cli import measure, runs, studies, tell
from asyncfeded.cli.app import app

__all__ = ["main", "measure", "runs", "studies", "tell"]


def main() -> None:
    """The program `asyncfeded`."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # the wish for a checkpoint, which would end a rank that is just starting
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name of a folder may hold what the locale cannot print
    app([_expanded(argument) for argument in sys.argv[1:]])


def _expanded(argument: str) -> str:
    """The argument, with the `~` of `--option=~/path` replaced; a shell replaces it only where a word begins with it."""
    option, _, value = argument.partition("=")
    if not (option.startswith("--") and value.startswith("~")):
        return argument
    return f"{option}={os.path.expanduser(value)}"  # noqa: PTH111, it leaves the home of an unknown user as it is
