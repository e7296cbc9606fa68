"""Who came and went in a run, from the events of its record."""

import numpy as np

from asyncfeded.store.record import EVENT

ATTENDANCE = {
    "absent": False,  # not there at the start
    "lost": False,  # its worker was given up, or it has none in a job that goes on
    "left": False,
    "joined": True,  # another process trains it from now on
    "back": True,  # its worker was given up too early, or it has one in a job that goes on
}
"""The kinds of events that say whether somebody trains a client from then on."""


def attendance(events: np.ndarray, besides: str = "") -> np.ndarray:
    """Who came and went in the run as it now stands: the rows of EVENT whose kind is in ATTENDANCE, or is `besides`.

    What happened after the checkpoint from which a later job went on is not of the run any more.
    """
    kept: list[np.void] = []
    for row in events:
        if row["kind"] == b"began":
            kept = [before for before in kept if before["updates"] <= row["updates"]]
        elif (kind := row["kind"].decode()) in ATTENDANCE or kind == besides:
            kept.append(row)
    return np.array(kept, EVENT)


def lines(events: np.ndarray) -> list[str]:
    """Who came and went, a line for each: time, and what happened. Those that were absent at first share a line."""
    rows = attendance(events)
    first = rows["client"][rows["kind"] == b"absent"].tolist()
    found = [f"at the start nobody trained client {', '.join(map(str, first))}"] if first else []
    for row in rows[rows["kind"] != b"absent"]:
        told = row["text"].decode(errors="replace") or f"client {row['client']} is {row['kind'].decode()}"
        found.append(f"{row['time_s']:.1f} s: {told}")
    return found
