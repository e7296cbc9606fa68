"""Runs the real server, global model and rule on declared times: up to 10,000 clients in one process, without MPI.

No client trains: each moves its model a tenth of the way to its own point, as on a quadratic loss. The time that the server
needs for an update is declared too, so that the clock shows the load of the server with so many clients; staleness is that
of the real rule.
"""

import heapq
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from asyncfeded import rules
from asyncfeded.config import Config, Evaluation, Faults, Limits
from asyncfeded.metric import DEFAULT, Metrics
from asyncfeded.model.flat import Entry, Layout
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.seeds import Stream, numpy_rng, seed_globals
from asyncfeded.store.record import UPDATE, UpdateRow
from asyncfeded.studies.scaling.queueing import Times
from asyncfeded.studies.statistics import quartiles
from asyncfeded.training.evaluation import Evaluator, NoEvaluator, Score
from asyncfeded.training.heterogeneity import draw
from asyncfeded.training.server import Server
from asyncfeded.training.server_state import ServerSettings, ServerState
from asyncfeded.wire.messages import Arrival, Order

PARAMS = 10_000
"""Number of elements of the simulated model."""
STEP = 0.1
"""Fraction of the way to its point that a client moves in a round."""
WARM_ROUNDS, ROUNDS = 3, 4
"""Mean number of rounds of each client that are left out, and that are measured."""
LEAST = 2000
"""Smallest number of measured updates; it matters for few clients."""


class QueueWire:
    """A `wire.Wire` on which time is declared: the server serves one update after the other, first come first served.

    Args:
        times: the times that an update takes.
        epochs: int (clients,), K of the first round; the time of a round is proportional to K.
        seed: seed of the durations of rounds, which are drawn from the measured ones.
        exponential: whether service times are drawn, exponential with mean S; otherwise each is S.
    """

    def __init__(self, times: Times, epochs: np.ndarray, seed: int, exponential: bool = False) -> None:
        clients = len(epochs)
        self._times, self._epochs, self._think_s, self._exponential = times, epochs, times.think(clients), exponential
        self._rng = numpy_rng(seed, Stream.SPEED)
        seed_globals(seed, Stream.TRAINING)
        self._points = torch.randn(PARAMS + clients)  # of client i: from element i on
        self._weights = torch.empty(PARAMS)  # of the update being taken
        self._now = self._free_s = 0.0  # of the update taken last, and when its service ends
        self._coming: list[tuple[float, int]] = []  # heap of (arrival, client)
        self._waiting: deque[tuple[float, int]] = deque()
        self._sent_s = np.zeros(clients)
        self._wait_s = np.zeros(clients)  # before the round that a client is in
        self._orders: dict[int, tuple[Order, Tensor]] = {}

    def now(self) -> float:
        """See `Wire`: the time at which the last update was taken."""
        return self._now

    def reply(self, order: Order, weights: Tensor, ready: Callable[[int], object]) -> None:
        """See `Wire`: the reply leaves when the current service ends."""
        ready(PARAMS)
        client = order.client
        here_s = self._free_s + self._times.latency_s  # there and back, in one piece
        self._wait_s[client] = here_s - self._sent_s[client]
        think_s = float(self._rng.choice(self._think_s)) * order.epochs / self._epochs[client]
        self._sent_s[client] = here_s + think_s
        self._orders[client] = (order, weights)
        heapq.heappush(self._coming, (here_s + think_s, client))

    def next(self) -> Arrival | None:
        """See `Wire`."""
        if not self._waiting:
            self._free_s = max(self._free_s, self._coming[0][0])
        while self._coming and self._coming[0][0] <= self._free_s:
            self._waiting.append(heapq.heappop(self._coming))
        self._now, (_, client) = self._free_s, self._waiting.popleft()
        service_s = self._times.service_s
        self._free_s += self._rng.exponential(service_s) if self._exponential else service_s
        order, base = self._orders.pop(client)
        torch.lerp(base, self._points[client : client + PARAMS], STEP, out=self._weights)
        figures = (order.epochs, 1, 1, 0.0, 0.0, float(self._wait_s[client]))
        return Arrival(client, order.round, order.version, *figures, self._weights, len(self._waiting))

    def release(self, arrival: Arrival) -> None:
        """See `Wire`."""

    def pause(self) -> None:
        """See `Wire`: never called, since there is always a next update."""

    def stop(self) -> int:
        """See `Wire`."""
        return len(self._waiting)


class Rows:
    """An `Observer` that keeps the rows of updates in memory."""

    def __init__(self) -> None:
        self.updates: list[UpdateRow] = []

    def on_update(self, row: UpdateRow) -> None:
        """See `Observer`."""
        self.updates.append(row)

    def on_evaluation(self, time_s: float, score: Score) -> None:
        """See `Observer`: the only evaluation is at the end."""

    def on_client_evaluation(self, time_s: float, arrival: Arrival) -> None:
        """See `Observer`."""

    def tick(self, server: Server) -> None:
        """See `Observer`: does nothing, since nothing is shown."""

    def say(self, sentence: str, kind: str = "", client: int = -1) -> None:
        """See `Observer`: a message means a fault of the simulation."""
        raise RuntimeError(sentence)


class Simulated(NamedTuple):
    """The simulated load of the server with so many clients."""

    clients: int
    updates_per_s: float
    client_wait: float
    queue: float
    """Mean number of updates that wait when one is taken."""
    gamma: np.ndarray
    """Quartiles (3,)."""
    tau: np.ndarray
    """Quartiles (3,)."""


def simulate(times: Times, config: Config, clients: int, exponential: bool = False) -> Simulated:
    """Simulate a server with so many clients on declared times.

    Args:
        times: what an update takes.
        config: config of a run, for its rule, first K and seed.
        clients: number of clients.
        exponential: see `QueueWire`.
    """
    epochs = draw(config, np.ones(clients, np.int64)).clients["epochs"].astype(np.int64)
    model = GlobalModel(torch.zeros(PARAMS), Layout((Entry("w", (PARAMS,), 0),), PARAMS, PARAMS), clients)
    rule, rows = rules.load_rule(config.rule), Rows()
    wire = QueueWire(times, epochs, config.seed, exponential)
    warm = WARM_ROUNDS * clients
    limits = Limits(updates=warm + max(ROUNDS * clients, LEAST))
    settings = ServerSettings(limits, Faults(), Evaluation(every_s=1e12), Metrics(DEFAULT, "accuracy"), in_idle_moments=True)
    state = ServerState(model, rule.init(model, epochs), epochs)
    Server(wire, rule, state, cast("Evaluator", NoEvaluator()), settings, observer=rows).run()
    updates = np.array(rows.updates, UPDATE)
    steady = updates[warm:]
    seconds = steady["time_s"][-1] - updates["time_s"][warm - 1]
    rate = len(steady) / seconds
    return Simulated(
        clients,
        float(rate),
        float(steady["wait_s"].mean() * rate / clients),
        float(steady["queue"].mean()),
        quartiles(steady["gamma"]),
        quartiles(steady["tau"]),
    )
