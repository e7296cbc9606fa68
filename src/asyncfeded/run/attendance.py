"""Who trains when a job begins, and how long guests are there."""

from collections.abc import Iterable

import numpy as np

from asyncfeded.store.attendance import ATTENDANCE, attendance
from asyncfeded.training.server_state import ServerState


def begin(state: ServerState, absent: Iterable[int], before: np.ndarray | None, rows: int) -> dict[int, str]:
    """Mark the clients as lost that nobody trains in a job that begins.

    Args:
        state: of the server; in a run that goes on, as it is restored.
        absent: clients without a rank in this job.
        before: record.EVENT (e,) of a run that goes on; None: the run is new.
        rows: updates of the record so far.

    Returns:
        The kind of event that the record gets for each client for which something has changed.
    """
    gone = sorted(absent)
    state.lost[gone] = True
    if before is None:
        return dict.fromkeys(gone, "absent")
    events = attendance(before)
    there = {int(row["client"]): ATTENDANCE[row["kind"].decode()] for row in events[events["updates"] <= rows]}
    for client in gone:
        # A checkpoint counts the order that a lost client would have got now (resume.snapshot).
        if not there.get(client, True) and np.isnan(state.share[client]):
            state.rounds[client] -= 1
    return dict.fromkeys(gone, "lost") | {client: "back" for client, was in there.items() if not was and client not in gone}


class Guests:
    """Counts how long clients that have joined are there."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._before_s = 0.0

    def note(self, kind: str, client: int, now_s: float) -> None:
        """Take an event of the record."""
        if kind == "joined":
            self._since[client] = now_s
        elif kind in ATTENDANCE and client in self._since:
            self._before_s += now_s - self._since.pop(client)

    def seconds(self, now_s: float) -> float:
        """Seconds up to now, summed over the clients."""
        return self._before_s + sum(now_s - since_s for since_s in self._since.values())
