"""Keys from a terminal, one at a time, without Enter. The terminal is as before afterwards."""

import os
import re
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

SEQUENCES = {"[A": "up", "[B": "down", "OA": "up", "OB": "down", "[5~": "page up", "[6~": "page down"}
"""What a terminal sends behind ESC."""


class Keys:
    """The keys of standard input."""

    def wait(self, seconds: float) -> list[str]:
        """The keys that have been pressed, or none after so many seconds. The end of the input counts as `q`."""
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        return split(os.read(sys.stdin.fileno(), 1024)) if ready else []


def split(raw: bytes) -> list[str]:
    """The keys in what a terminal has sent; a sequence that no name stands for is left out."""
    if not raw:
        return ["q"]
    found = re.findall(r"\x1b([\[O][\d;]*[A-Za-z~])|([^\x1b])", raw.decode(errors="ignore"))
    return [name for sequence, key in found if (name := SEQUENCES.get(sequence, "") if sequence else key)]


@contextmanager
def keys() -> Iterator[Keys]:
    """The keys, while the terminal gives them at once and does not show them."""
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield Keys()
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
