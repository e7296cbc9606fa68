"""The command line runs the one command that argv names. It imports torch only where a command trains."""

import io
import os
import signal
import sys

from asyncfeded.cli import clients, look, measure, runs, studies, tell
from asyncfeded.cli.app import app
from asyncfeded.cli.app import tell as say

__all__ = ["clients", "look", "main", "measure", "runs", "studies", "tell"]


def main() -> None:
    """The program `asyncfeded`."""
    _open_streams()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # the wish for a checkpoint, which would end a rank that is just starting
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name of a folder may hold what the locale cannot print
    arguments = [_expanded(argument) for argument in sys.argv[1:]]
    _check_dashes(arguments)
    try:
        try:
            app(arguments)
        finally:
            sys.stdout.flush()  # what waits in the buffer fails here, or when Python ends
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        say(f"{error.filename or 'the output'} cannot be written: {error.strerror}")
        sys.exit(1)


def _open_streams() -> None:
    """Open on /dev/null what is closed (`>&-`): the next file to be opened, such as a record, would take what is printed."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number: this one
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def _check_dashes(arguments: list[str]) -> None:
    """End the program if a key of a run or a grid stands behind dashes, as an option would."""
    names = [argument.partition("=")[0][2:] for argument in arguments if argument.startswith("--")]
    if not {"train", "resume", "study", "scale"} & set(arguments[:1]) or {"ranks", "help"}.issuperset(names):
        return
    from asyncfeded.config import Config

    if keys := [name for name in names if "." in name or name.replace("-", "_") in Config.model_fields]:
        say(f"--{keys[0]}: a key is written without dashes: {keys[0].replace('-', '_')}=VALUE")
        sys.exit(2)


def _expanded(argument: str) -> str:
    """The argument, with the `~` of `--option=~/path` replaced; a shell replaces it only where a word begins with it."""
    option, _, value = argument.partition("=")
    if not (option.startswith("--") and value.startswith("~")):
        return argument
    return f"{option}={os.path.expanduser(value)}"  # noqa: PTH111, it leaves the home of an unknown user as it is
