"""An `Evaluator` whose tests another rank makes, so that the server does not stop for them; and what that rank does."""

import time
from collections.abc import Iterable

from torch import Tensor

from asyncfeded.training.evaluation import Evaluator, Score
from asyncfeded.wire.snapshots import FromServer, ToTester


class Elsewhere:
    """Sends snapshots to the rank that tests them. Rank 0.

    Args:
        tester: the wire to that rank.
        metrics: their names, in the order of the task.

    Attributes:
        seconds: wall time of the last evaluation, from its snapshot to its score.
    """

    def __init__(self, tester: ToTester, metrics: Iterable[str]) -> None:
        self._tester, self._metrics = tester, tuple(metrics)
        self._version, self._began, self.seconds = -1, 0.0, 0.0

    @property
    def num_bytes(self) -> int:
        """See `Evaluator`."""
        return self._tester.num_bytes

    def stop(self, ranks_lost: bool) -> None:
        """Let the tester leave; it is told whether ranks are lost."""
        self._tester.stop(ranks_lost)

    @property
    def running(self) -> bool:
        """Whether a snapshot is being tested."""
        return self._tester.testing

    def start(self, x: Tensor, version: int) -> None:
        """Send a snapshot of x, float32 (size,). A test that is under way comes to its end before."""
        if self.running:
            self.finish()
        self._tester.send(x, version)
        self._version, self._began = version, time.perf_counter()

    def step(self) -> Score | None:
        """The score, if it is here. Never waits."""
        return self._score(self._tester.poll())

    def finish(self) -> Score:
        """Wait for the score of the snapshot that is being tested."""
        score = self._score(self._tester.wait())
        assert score
        return score

    def score(self, x: Tensor, version: int) -> Score:
        """Evaluate x, and wait for its score."""
        self.start(x, version)
        return self.finish()

    def _score(self, values: list[float] | None) -> Score | None:
        if values is None:
            return None
        self.seconds = time.perf_counter() - self._began
        return Score(self._version, dict(zip(self._metrics, values, strict=True)))


def serve_tests(server: FromServer, evaluator: Evaluator) -> bool:
    """Test what the server sends until it says stop. The evaluator's rank. Returns whether ranks are lost.

    Args:
        server: the wire to the server.
        evaluator: tests a snapshot.
    """
    while (version := server.receive()) is not None:
        evaluator.start(server.snapshot, version)
        while (score := evaluator.step()) is None:
            server.tell()
        server.tell(list(score.values.values()))
    return server.ranks_lost
