"""Figures of a run's clients: a timeline of every one, and what each gave to the model against what it has."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from asyncfeded.report.figure import Chart, Dumbbells, Figure, Line, Panel, Raster, Spans
from asyncfeded.report.seen import Seen
from asyncfeded.report.words import count, number, percent, seconds

ROWS, SPANS = 48, 5000
"""Most clients and most rounds that are drawn one by one; of more, cells count the updates."""
COLUMNS, CELLS = 240, 240_000
"""Columns of these cells, and how many there may be; clients of neighbouring numbers then share a row."""

TABLE = 1000
"""Most clients in a table; of more it has those with the most and those with the fewest updates."""


def timeline(seen: Seen) -> Figure:
    """Every client over time: rounds and waits one by one, or where they are many its updates in stretches of time."""
    updates, clients = seen.updates, len(seen.clients)
    panel: Panel | None = None
    note = ""
    if len(updates):
        one_by_one = clients <= ROWS and len(updates) <= SPANS
        panel = _spans(seen) if one_by_one else _raster(seen)
        if one_by_one:
            note = "A round lasts from the reply to the client's update before it until the server took its own."
            note += " Waits are shown on the wall clock." if seen.clock != "wall" else ""
        else:
            note = (
                "A cell counts the updates of a client that were taken in that stretch of time, the refused ones included."
            )
    if isinstance(panel, Raster) and panel.per_row > 1:
        note += f" {panel.per_row} clients share a row."
    if panel and seen.resumed_s:
        note += " A dashed line is where the run went on from a checkpoint."
    return Figure(
        f"{seen.key}-timeline",
        "Timeline of every client",
        _pace(seen),
        [panel] if panel else [],
        [
            "client",
            "updates",
            "refused",
            "first at s",
            "last at s",
            "longest gap s",
            "K",
            "gamma",
            "eta",
            "compute s",
            "wait s",
        ],
        list(_rows(seen)),
        note,
    )


def _cycles(seen: Seen) -> tuple[np.ndarray, np.ndarray]:
    """The rows by client and time, and when each round began: at the client's update before, its joining, or the start."""
    rows = seen.updates[np.lexsort((seen.updates["time_s"], seen.updates["client"]))]
    began = np.zeros(len(rows))
    again = rows["client"][1:] == rows["client"][:-1]
    began[1:][again] = rows["time_s"][:-1][again]
    for event in seen.events[np.isin(seen.events["kind"], (b"joined", b"back"))]:
        first = np.flatnonzero((rows["client"] == event["client"]) & (rows["time_s"] >= event["time_s"]))[:1]
        began[first] = np.maximum(began[first], event["time_s"])
    return rows, began


def _spans(seen: Seen) -> Spans:
    rows, began = _cycles(seen)
    # The wait after the update before it is known on the wall clock; on the virtual one a reply takes no time.
    wait = np.clip(np.nan_to_num(rows["wait_s"]), 0, rows["time_s"] - began) if seen.clock == "wall" else np.zeros(len(rows))
    wait[began == 0] = 0
    waits = wait > 0
    start = np.concatenate([began + wait, began[waits]])
    end = np.concatenate([rows["time_s"], (began + wait)[waits]])
    kind = np.concatenate([np.zeros(len(rows), np.int64), np.ones(int(waits.sum()), np.int64)])
    row = np.concatenate([rows["client"], rows["client"][waits]])
    marks = [(int(one["client"]), float(one["time_s"]), 0) for one in rows[~rows["accepted"]]]
    marks += [
        (int(one["client"]), float(one["time_s"]), 1) for one in seen.events if one["kind"] in (b"lost", b"left", b"dropped")
    ]
    names = [f"client {client}" for client in range(len(seen.clients))]
    kinds = [("training", 0), ("waiting for the reply", 1)][: 1 + bool(waits.any())]
    return Spans("", seen.time_label, names, kinds, row, start, end, kind, marks, seen.resumed_s)


def _raster(seen: Seen) -> Raster:
    clients, end = len(seen.clients), max(seen.seconds, 1e-9)
    per_row = -(-clients * COLUMNS // CELLS)
    rows = -(-clients // per_row)
    column = np.minimum((seen.updates["time_s"] / end * COLUMNS).astype(np.int64), COLUMNS - 1)
    cells = np.zeros((rows, COLUMNS), np.int64)
    np.add.at(cells, (seen.updates["client"] // per_row, column), 1)
    return Raster("", seen.time_label, "client", 0.0, end, cells, "updates", per_row, seen.resumed_s)


def shown(counts: np.ndarray) -> np.ndarray:
    """The clients of a table: all, or of very many those with the most and those with the fewest updates."""
    if len(counts) <= TABLE:
        return np.arange(len(counts))
    order = np.argsort(-counts, kind="stable")
    return np.concatenate([order[: TABLE // 2], order[-TABLE // 2 :]])


def _rows(seen: Seen) -> Iterator[list[str]]:
    """The cells of the table behind the timeline."""
    rows, began = _cycles(seen)
    since = rows["time_s"] - began
    edges = np.searchsorted(np.ascontiguousarray(rows["client"]), np.arange(len(seen.clients) + 1)).tolist()
    for client in shown(seen.counts).tolist():
        first, last = edges[client], edges[client + 1]
        own, gaps = rows[first:last], since[first:last]
        merged = own[own["accepted"]]
        ends = [f"{own['time_s'][0]:.2f}", f"{own['time_s'][-1]:.2f}", f"{gaps.max():.2f}"] if len(own) else [""] * 3
        medians = [number(float(np.median(merged[name])), 3) if len(merged) else "" for name in ("epochs", "gamma", "eta")]
        times = [number(float(np.median(own[name])), 3) if len(own) else "" for name in ("compute_s", "wait_s")]
        yield [str(client), f"{len(merged):,}", f"{len(own) - len(merged):,}", *ends, *medians, *times]


def _pace(seen: Seen) -> str:
    counts, clients = seen.counts, len(seen.clients)
    if not len(seen.updates):
        return "No update has arrived" + (" yet." if seen.goes_on else ".")
    said = f"{count(clients, 'client')} made {count(int(counts.sum()), 'merged update')}"
    if clients > 1 and counts.sum():
        most, least = int(counts.argmax()), int(counts.argmin())
        said += f": client {most} the most ({counts[most]:,}), client {least} the fewest ({counts[least]:,})"
    none = int((counts == 0).sum())
    said += f"; {none:,} of them made none" if none else ""
    rows, began = _cycles(seen)
    longest = int((rows["time_s"] - began).argmax())
    gap = rows["time_s"][longest] - began[longest]
    said += f". The longest time without an update was {seconds(gap)}, of client {rows['client'][longest]}"
    refused = int(seen.refusals.sum())
    return said + (f". {count(refused, 'update')} {'was' if refused == 1 else 'were'} refused." if refused else ".")


def shares(seen: Seen) -> Figure:
    """What each client gave: its shares of the updates, and of all movement of the model, against its share of the data."""
    held, made, pulled = parts(seen)
    panels: list[Panel] = []
    if seen.counts.sum() and len(held) <= ROWS:
        dots = [("data", 7, 100 * held), ("updates", 0, 100 * made), ("movement of the model", 1, 100 * pulled)]
        panels.append(Dumbbells("", "percent of the whole", [f"client {i}" for i in range(len(held))], dots))
    elif seen.counts.sum():
        order = np.argsort(held, kind="stable")
        x = 100 * held[order]
        for label, values in (("updates", made), ("movement of the model", pulled)):
            line = Line("a client", x, 100 * values[order], 0 if values is made else 1, "dots")
            title = f"Share of the {label} against share of the data, in percent"
            panels.append(Chart(title, "share of the data, %", [line], zero=True, diagonal=True))
    rows = [
        [str(i), f"{seen.clients['samples'][i]:,}", *(percent(float(part[i])) for part in (held, made, pulled))]
        for i in shown(seen.counts).tolist()
    ]
    note = "Movement of the model: the sum of eta ||w - x_s|| over a client's updates, so who pulled the model how far."
    if len(held) > ROWS:
        note += " On the line, a client's share is that of its data."
    return Figure(
        f"{seen.key}-shares",
        "Who pulled the model",
        _fair(seen, held, made, pulled),
        panels,
        ["client", "samples", "of the data", "of the updates", "of the movement"],
        rows,
        note if panels else "",
    )


def parts(seen: Seen) -> tuple[np.ndarray, ...]:
    """The shares of each client (clients,) in data, merged updates, and movement of the model; each adds up to 1."""
    merged = seen.merged
    pull = np.nan_to_num(merged["eta"] * merged["change_norm"], nan=0.0, posinf=0.0, neginf=0.0)
    moved = np.bincount(merged["client"], np.abs(pull), len(seen.clients))
    wholes: list[Any] = [seen.clients["samples"], seen.counts, moved]
    return tuple(whole / max(whole.sum(), 1e-300) for whole in wholes)


def _fair(seen: Seen, held: np.ndarray, made: np.ndarray, pulled: np.ndarray) -> str:
    if not seen.counts.sum():
        return "No update was merged, so no client has a share."
    if len(held) == 1:
        return "The only client made all updates."
    ahead, puller = int((made - held).argmax()), int(pulled.argmax())
    said = f"Client {ahead} is furthest ahead of its data: it holds {percent(held[ahead])} of the samples and made "
    said += f"{percent(made[ahead])} of the updates. Client {puller} moved the model most: {percent(pulled[puller])} of all "
    off = float(np.abs(made - held).sum() / 2)
    return said + f"movement. {percent(off)} of the updates would have to be another client's for shares equal to the data."
