"""How long a client may be silent before it is given up. This follows from the client's own history.

Only the time in which the server was listening counts. Where MPI reports a death, this is not needed; but no MPI reports a
link that was cut, or a process that was stopped.
"""

import statistics
import time
from collections import defaultdict, deque

LENGTH = 32
"""How many rounds of a client are remembered."""
STRANGER = 10.0
"""A client without history may take this many times the longest deadline of the others: speeds differ by less."""
REGULAR = 0.1
"""The spread counts as at least this share of the median: a few rounds look more regular than they are."""
LISTENING_S = 1.0
"""The most seconds that count between two calls of `listen`: a server that was stopped or busy has heard nobody."""


class Deadlines:
    """Knows the past rounds of each client, and says when a client is overdue.

        deadline = median + patience * max(spread, REGULAR median),    spread = median |s - median|

    over the seconds s of its last rounds. If a round had fewer epochs than the present one, s is scaled up in proportion.

    Args:
        patience: how many times the spread.
        least_s: the shortest deadline.

    Attributes:
        listened_s: seconds of listening up to the last call of `listen`.
    """

    def __init__(self, patience: float, least_s: float) -> None:
        self._patience, self._least_s = patience, least_s
        self._rounds: dict[int, deque[tuple[float, int]]] = defaultdict(lambda: deque(maxlen=LENGTH))
        self._known: dict[int, tuple[int, float]] = {}  # by client: epochs and their deadline, until its next round
        self.listened_s, self._looked = 0.0, time.perf_counter()

    def listen(self) -> float:
        """To be called at every poll. Returns the seconds of listening so far."""
        now = time.perf_counter()
        passed_s, self._looked = now - self._looked, now
        self.listened_s += passed_s if passed_s < LISTENING_S else LISTENING_S
        return self.listened_s

    @property
    def last_s(self) -> float:
        """The deadline of a worker that only has to answer a STOP, within a step: the longest round that is remembered."""
        longest_s = max((seconds for rounds in self._rounds.values() for seconds, _ in rounds), default=0.0)
        return max(self._least_s, longest_s) if self._patience else float("inf")

    def note(self, client: int, epochs: int, seconds: float) -> None:
        """Remember a round of a client: the seconds from its order to its answer."""
        self._rounds[client].append((seconds, epochs))
        self._known.pop(client, None)

    def forget(self, client: int) -> None:
        """Forget the rounds of a client: another process trains it now."""
        self._rounds.pop(client, None)
        self._known.pop(client, None)

    def deadline_s(self, client: int, epochs: int) -> float:
        """After how many seconds of silence to give up a client that trains this many epochs; infinite at first."""
        if not self._patience:
            return float("inf")
        if client in self._rounds:
            return self._of(client, epochs)
        return STRANGER * max((self._of(other, epochs) for other in self._rounds), default=float("inf"))

    def _of(self, client: int, epochs: int) -> float:
        """The deadline of a client with history. It is kept: 10,000 of them took 0.09 s for each stranger."""
        known = self._known.get(client)
        if known is None or known[0] != epochs:
            taken_s = [seconds * max(1.0, epochs / done) for seconds, done in self._rounds[client]]
            median = statistics.median(taken_s)
            spread = statistics.median(abs(s - median) for s in taken_s)
            # Rare long rounds, such as those with a test on held-out data, leave no trace in median and spread.
            deadline_s = max(self._least_s, median + self._patience * max(spread, REGULAR * median), 2 * max(taken_s))
            known = self._known[client] = (epochs, deadline_s)
        return known[1]
