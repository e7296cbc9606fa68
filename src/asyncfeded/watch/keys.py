"""Keys from a terminal, one at a time, without Enter. The terminal is as before afterwards."""

import os
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

    def wait(self, seconds: float) -> str:
        """The next key, or empty after so many seconds. The end of the input counts as `q`."""
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        if not ready:
            return ""
        raw = os.read(sys.stdin.fileno(), 16)  # a sequence comes in one piece
        if not raw:
            return "q"
        text = raw.decode(errors="ignore")
        return SEQUENCES.get(text[1:], "") if text.startswith("\x1b") else text[:1]


@contextmanager
def keys() -> Iterator[Keys]:
    """The keys, while the terminal gives them at once and does not show them."""
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield Keys()
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
