"""How many clients one server can serve: a closed queueing network, fitted on some runs and tested on the others.

A client thinks (trains) for Z seconds, its messages travel for L, and the server, first come first served, needs S for each
update: the machine repairman. For exponential service, exact mean value analysis (Reiser and Lavenberg, JACM 27(2), 1980;
Lazowska et al., Quantitative System Performance, 1984, section 6.3; any distribution of Z):

    R(n) = S (1 + Q(n-1)),    X(n) = n / (Z + L + R(n)),    Q(n) = X(n) R(n),    Q(0) = 0

R is the time at the server, X the updates per second and Q the updates there. X is at most n / (Z + L + S) and 1 / S, which
meet at N* = (Z + L + S) / S clients (Lazowska, section 5.3): beyond, the server is saturated, and clients wait for each
other. A server whose service always takes S keeps clients waiting less than that near N*; the simulation (simulation.py) has
such a one.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from asyncfeded.studies.scaling.table import ScalingRow


class Times(NamedTuple):
    """The times that an update takes, in seconds."""

    service_s: float
    """S."""
    latency_s: float
    """L: transfers and waking up; meanwhile the server may serve others."""
    think_s: np.ndarray
    """(n,) rounds of the fewest clients of the grid as measured; their mean is Z."""
    divided: int
    """In strong scaling the fewest clients, whose rounds are divided among more; 0 in weak scaling."""

    def think(self, clients: int) -> np.ndarray:
        """Rounds of so many clients, (n,)."""
        return self.think_s * self.divided / clients if self.divided else self.think_s


class Load(NamedTuple):
    """The load of the server with so many clients."""

    updates_per_s: float
    client_wait: float
    """Fraction of a client's time in which it waits."""


def fit(rows: Sequence[ScalingRow], fewest: int) -> Times:
    """Fit the times of one line of the study.

    Args:
        rows: runs to fit on, of one line.
        fewest: the smallest number of clients in the grid; strong scaling converts all rounds to theirs.

    Returns:
        S: median over the runs. L: the wait in the runs of fewest clients, where almost no update queues, minus S. Z: all
        rounds; in strong scaling they are converted to rounds of the fewest clients.
    """
    strong = rows[0].run.scaling == "strong"
    service_s = float(np.median([row.service_s for row in rows]))
    alone = min(row.run.clients for row in rows)
    wait_s = float(np.median([row.wait_s for row in rows if row.run.clients == alone]))
    think_s = np.concatenate([row.think_s * (row.run.clients / fewest if strong else 1.0) for row in rows])
    return Times(service_s, max(wait_s - service_s, 0.0), think_s, fewest if strong else 0)


def saturation(times: Times) -> float:
    """N*, the number of clients from which on the server is saturated.

    In strong scaling Z is z / N for the work z of all: N S = z / N + L + S.
    """
    service_s, other_s, think_s = times.service_s, times.latency_s + times.service_s, float(times.think_s.mean())
    if not times.divided:
        return (think_s + other_s) / service_s
    work_s = think_s * times.divided
    return (other_s + math.sqrt(other_s**2 + 4 * service_s * work_s)) / (2 * service_s)


def mean_values(times: Times, clients: int) -> Load:
    """Exact mean value analysis of so many clients."""
    away_s = float(times.think(clients).mean()) + times.latency_s
    queue = rate = response_s = 0.0
    for n in range(1, clients + 1):
        response_s = times.service_s * (1 + queue)
        rate = n / (away_s + response_s)
        queue = rate * response_s
    return Load(rate, (times.latency_s + response_s) / (away_s + response_s))


def bound(times: Times, clients: int) -> float:
    """Updates per second that no server of these times exceeds: n / (Z + L + S), and 1 / S."""
    away_s = float(times.think(clients).mean()) + times.latency_s
    return min(clients / (away_s + times.service_s), 1 / times.service_s)
