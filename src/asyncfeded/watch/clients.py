"""What is known of each client of a run that goes on, and in which order to show them."""

from dataclasses import dataclass, field

import numpy as np

from asyncfeded.store.attendance import ATTENDANCE

NOTABLE = 0.05
"""Part of the clients, at least one, that is named as the slowest, and as the stalest."""


@dataclass
class Clients:
    """Columns with a value for each client; NaN where it has sent nothing yet.

    Args:
        count: number of clients.
    """

    count: int
    updates: np.ndarray = field(init=False)
    """int64 (clients,), merged."""
    refused: np.ndarray = field(init=False)
    """int64 (clients,)."""
    K: np.ndarray = field(init=False)
    """float64 (clients,), what it was sent last, as far as its rows tell."""
    gamma: np.ndarray = field(init=False)
    """float64 (clients,), of its last update; so are eta, loss, compute_s and wait_s."""
    eta: np.ndarray = field(init=False)
    loss: np.ndarray = field(init=False)
    compute_s: np.ndarray = field(init=False)
    """Wall time of its round."""
    wait_s: np.ndarray = field(init=False)
    """Wall time that it waited before that round."""
    round_s: np.ndarray = field(init=False)
    """float64 (clients,), between its last two updates, on the run's clock."""
    seen_s: np.ndarray = field(init=False)
    """float64 (clients,), when its last update was taken, on the run's clock; 0: none yet."""
    lost: np.ndarray = field(init=False)
    """bool (clients,), its worker was given up."""
    dropped: np.ndarray = field(init=False)
    """bool (clients,), it was refused too often."""

    def __post_init__(self) -> None:
        self.updates, self.refused = np.zeros((2, self.count), np.int64)
        self.K, self.gamma, self.eta, self.loss, self.compute_s, self.wait_s, self.round_s = np.full((7, self.count), np.nan)
        self.seen_s = np.zeros(self.count)
        self.lost, self.dropped = np.zeros((2, self.count), np.bool_)

    def take(self, updates: np.ndarray) -> None:
        """Enter rows: record.UPDATE (n,), in order."""
        rows = updates[np.argsort(updates["client"], kind="stable")]
        client = rows["client"]
        self.updates += np.bincount(client[rows["accepted"]], minlength=self.count)
        self.refused += np.bincount(client[~rows["accepted"]], minlength=self.count)
        last = np.append(client[1:] != client[:-1], [True][: len(client)])
        first = np.append([True], last[:-1])[: len(client)]
        before = np.where(first, self.seen_s[client], np.roll(rows["time_s"], 1))
        rows, at = rows[last], client[last]
        self.round_s[at] = rows["time_s"] - before[last]
        self.K[at] = np.where(rows["next_epochs"] > 0, rows["next_epochs"], rows["epochs"])
        self.loss[at], self.seen_s[at] = rows["train_loss"], rows["time_s"]
        for name in ("gamma", "eta", "compute_s", "wait_s"):
            getattr(self, name)[at] = rows[name]

    def event(self, kind: bytes, client: int) -> None:
        """Enter an event; see record.EVENT."""
        if kind == b"began":  # who was lost gets a new order
            self.lost[:] = False
        elif kind.decode() in ATTENDANCE:
            self.lost[client] = not ATTENDANCE[kind.decode()]
        elif kind == b"dropped":
            self.dropped[client] = True

    def share(self) -> np.ndarray:
        """float64 (clients,), the part of the updates that each client made."""
        return self.updates / max(int(self.updates.sum()), 1)

    def slow_s(self, now_s: float) -> np.ndarray:
        """float64 (clients,), how long each client takes: its last round, or its present one where that is longer."""
        slow: np.ndarray = np.fmax(self.round_s, now_s - self.seen_s)
        return slow

    def by_need(self, now_s: float) -> np.ndarray:
        """Ids of all clients, in the order of need: gone, then in turn the slowest, the stalest, the most refused."""
        nobody = np.full(self.count, self.count)
        ranks = [_rank(self.slow_s(now_s)), _rank(np.nan_to_num(self.gamma, nan=-1.0))]
        ranks.append(np.where(self.refused > 0, _rank(self.refused), nobody))
        need = np.where(self.lost | self.dropped, -1, np.min(ranks, axis=0))
        return np.lexsort((ranks[0], need))

    def notes(self, now_s: float) -> list[str]:
        """A few words for each client; for most of them none."""
        few = max(1, int(NOTABLE * self.count))
        words = [
            ("lost", self.lost),
            ("dropped", self.dropped),
            ("slowest", (_rank(self.slow_s(now_s)) < few) & (self.count > 1)),
            ("stalest", (_rank(np.nan_to_num(self.gamma, nan=-1.0)) < few) & (self.count > 1) & (self.gamma > 0)),
        ]
        return [", ".join(word for word, which in words if which[client]) for client in range(self.count)]


def _rank(values: np.ndarray) -> np.ndarray:
    """Place of each value, 0 for the largest; equal ones in their order."""
    places = np.empty(len(values), np.int64)
    places[np.argsort(-values, kind="stable")] = np.arange(len(values))
    return places
