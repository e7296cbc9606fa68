"""How long a client may be silent before it is given up: by its own history, in time that the server was listening.

Where MPI tells of a death nobody needs this; a link that was cut, or a process that was stopped, no MPI reports.
"""

import statistics
import time
from collections import deque

LENGTH = 32
"""Rounds of a client that are remembered."""
STRANGER = 10.0
"""A client without history may take so many times as long as anybody else: speeds differ by less."""
REGULAR = 0.1
"""The spread counts as no less than this share of the median: few rounds look more regular than they are."""
LISTENING_S = 1.0
"""The most that counts between two looks: a server that was stopped, or busy, has heard nobody."""


class Deadlines:
    """Knows the rounds of each client, and says when one is overdue.

        deadline = median + patience * max(spread, REGULAR median),    spread = median |s - median|

    over the seconds s of its last rounds, those with fewer epochs than it has now drawn out in proportion.

    Args:
        patience: multiples of the spread.
        least_s: no deadline is shorter.
    """

    def __init__(self, patience: float, least_s: float) -> None:
        self._patience, self._least_s = patience, least_s
        self._rounds: dict[int, deque[tuple[float, int]]] = {}
        self._listened_s, self._looked = 0.0, time.perf_counter()

    def listen(self) -> float:
        """Another look at what has come. Returns the seconds of listening so far."""
        now = time.perf_counter()
        self._listened_s += min(now - self._looked, LISTENING_S)
        self._looked = now
        return self._listened_s

    @property
    def last_s(self) -> float:
        """The deadline of a worker that has only to answer a stop, within a step: the longest round that is remembered."""
        longest_s = max((seconds for rounds in self._rounds.values() for seconds, _ in rounds), default=0.0)
        return max(self._least_s, longest_s) if self._patience else float("inf")

    @property
    def listened_s(self) -> float:
        """As of the last look."""
        return self._listened_s

    def note(self, client: int, epochs: int, seconds: float) -> None:
        """A round of a client: from its order to its answer."""
        self._rounds.setdefault(client, deque(maxlen=LENGTH)).append((seconds, epochs))

    def deadline_s(self, client: int, epochs: int) -> float:
        """Seconds of silence after which to give a client up that was asked for so many epochs; infinite at first."""
        if not self._patience:
            return float("inf")
        if rounds := self._rounds.get(client):
            return self._of(rounds, epochs)
        return STRANGER * max((self._of(other, epochs) for other in self._rounds.values()), default=float("inf"))

    def _of(self, rounds: deque[tuple[float, int]], epochs: int) -> float:
        taken_s = [seconds * max(1.0, epochs / done) for seconds, done in rounds]
        median = statistics.median(taken_s)
        spread = statistics.median(abs(s - median) for s in taken_s)
        return max(self._least_s, median + self._patience * max(spread, REGULAR * median))
