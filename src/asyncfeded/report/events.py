"""What happened during a run besides updates: jobs, checkpoints, refusals, deaths, trouble, as its record has them."""

import time
from collections import Counter

import numpy as np

from asyncfeded.report import html
from asyncfeded.report.html import Html, tag
from asyncfeded.report.words import count, number, seconds

SHOWN = 60
"""Largest number of events of a kind in the table; of more the first and the last."""


def moment(at_s: float) -> str:
    """A Unix time as date and time, here."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))


def section(events: np.ndarray, kept: int) -> Html:
    """What happened.

    Args:
        events: record.EVENT (n,).
        kept: how many checkpoints lie in the run's folder.
    """
    if not len(events):
        return tag("p", f"The record has no events; the folder has {count(kept, 'checkpoint')}.", class_="says")
    kinds = Counter(kind.decode() for kind in events["kind"].tolist())
    resumed = int(((events["kind"] == b"began") & (events["text"] != b"")).sum())
    written = events["seconds"][events["kind"] == b"checkpoint"]
    took = f", {seconds(written.mean())} each" if len(written) else ""
    said = [
        f"{count(kinds['began'], 'job')}, {resumed} of them from a checkpoint",
        f"{count(kinds['refused'], 'message')} refused",
        f"{count(kinds['lost'] + kinds['dropped'], 'client')} lost, {kinds['back']} back",
        f"{count(kinds['checkpoint'], 'checkpoint')} written{took}, and {kept} kept",
    ]
    coming = {"absent": "absent at the start of a job", "joined": "joined", "left": "left"}
    said += [f"{count(kinds[kind], 'client')} {word}" for kind, word in coming.items() if kinds[kind]]
    said += [f"trouble with the disk {count(kinds['trouble'], 'time')}"] if kinds["trouble"] else []
    told = events[events["kind"] != b"evaluated"]  # their results are in a figure of their own
    rows = [_cells(event) for event in told[_few(told["kind"])]]
    left = len(told) - len(rows)
    note = f"Of each kind the first and the last {SHOWN // 2} are shown; {left:,} are not." if left else ""
    head = ["when", "what", "at s of the run", "client", "took", "in words"]
    return tag(
        "figure",
        tag("h3", "Jobs, checkpoints, refusals and losses"),
        tag("p", f"{'; '.join(said)}.", class_="says"),
        tag("p", note, class_="note") if note else "",
        html.folded(f"Table: {count(len(rows), 'event')}", html.table(head, rows, words=len(head))),
    )


def _cells(event: np.void) -> list[str]:
    client, took = int(event["client"]), float(event["seconds"])
    return [
        moment(event["at_s"]),
        event["kind"].decode(),
        number(float(event["time_s"])),
        str(client) if client >= 0 else "",
        seconds(took) if took else "",
        event["text"].decode(errors="replace"),
    ]


def _few(kinds: np.ndarray) -> np.ndarray:
    """Indices of the first and the last events of each kind, rising."""
    few = [np.zeros(0, np.int64)]
    for kind in np.unique(kinds):
        of_kind = np.flatnonzero(kinds == kind)
        few.append(of_kind if len(of_kind) <= SHOWN else np.concatenate([of_kind[: SHOWN // 2], of_kind[-SHOWN // 2 :]]))
    return np.sort(np.concatenate(few))
