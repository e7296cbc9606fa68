"""A run as a trace in Chrome's JSON, for ui.perfetto.dev: who did what when, from the record alone.

The record tells when an update was taken, how long the server was at its parts, and how long the client trained. What lies
between the end of a reply, the training and the next update is the way there and back, and the wait in the server's queue.
The shortest such time of a client counts as two ways, half of it each; what is longer is the wait.

On a simulated clock a round lasts from its order to its update, and the server takes no time.
"""

import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from asyncfeded.config import Config, section
from asyncfeded.files.plain import parse_toml
from asyncfeded.store.record import Tables, read_record
from asyncfeded.watch.state import SECONDS

SERVER, CLIENTS = 1, 2
"""Numbers of the two groups of tracks."""
RECEIPTS, UPDATES, TESTS, CHECKPOINTS, EVENTS = 2, 3, 4, 5, 6
"""Numbers of the server's tracks, in the order in which they are shown."""
FIRST = 1_000_000
"""Number of the track of client 0, which Perfetto shows behind the name. It shows 0, or the number of the group, first."""
HEAD = '{"displayTimeUnit":"ms","otherData":'
"""How a trace begins."""


class Rounds(NamedTuple):
    """The times of each update, all float64 (n,), in seconds on the run's clock, in the order of the record."""

    ordered: np.ndarray
    """When the server had sent the order; the client receives it from here on."""
    began: np.ndarray
    """When the training began."""
    trained: np.ndarray
    """When it ended, and sending began."""
    sent: np.ndarray
    """When the update was there, and waited."""
    received: np.ndarray
    """When the server began to receive it, or the receipt of the one before had ended."""
    taken: np.ndarray
    """When the server took it, and measured it."""
    measured: np.ndarray
    """When its distances were known, and the rule merged it."""
    merged: np.ndarray
    """When the rule had decided, and the reply began; most rules merge on while it is sent."""
    served: np.ndarray
    """When the server had done with it."""
    answered: np.ndarray
    """When the client's next order was sent; NaN: never."""


def write_trace(run_dir: Path, path: Path) -> str:
    """Write the trace of a run, also of one that goes on.

    Args:
        run_dir: folder of the run.
        path: the file, compressed where its name ends in .gz; replaced only if it is a trace.

    Returns:
        A sentence about what it holds.

    Raises:
        ValueError: there is no record, it is damaged, the file cannot be written, or it is there and is no trace.
    """
    _check_free(path)
    tables = read_record(run_dir)
    config = section(Config, parse_toml(str(tables.attributes["config"]), "record.h5: config"), "record.h5: config")
    part = path.with_name(f"{path.name}.part")
    try:
        with gzip.open(part, "wt", 3) if path.suffix == ".gz" else part.open("w") as file:
            count = _write(file, tables, config.clock)
        part.replace(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror or error}") from None
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    seconds = SECONDS[config.clock]
    return f"{path}: {count} updates, {size}, {seconds} seconds; open it in ui.perfetto.dev"


def _check_free(path: Path) -> None:
    """Raise ValueError if a file is there that is no trace of this program."""
    if not path.exists():
        return
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            ours = file.read(len(HEAD)) == HEAD.encode()
    except (OSError, EOFError):
        ours = False
    if not ours:
        raise ValueError(f"{path}: is there already, and is no trace; move it away, or name another file with --output")


def _write(file: TextIO, tables: Tables, clock: str) -> int:
    about = {"asyncfeded": str(tables.attributes["asyncfeded"]), "seconds": SECONDS[clock]}
    file.write(f'{HEAD}{json.dumps(about)},"traceEvents":[\n')
    file.write(",\n".join(_names(tables, clock)))
    for lines in (_updates(tables.updates, rounds(tables, clock), clock), _events(tables, clock)):
        for line in lines:
            file.write(",\n")
            file.write(line)
    file.write("\n]}\n")
    return len(tables.updates)


def rounds(tables: Tables, clock: str) -> Rounds:
    """The times of each update of a record; see the top of this file for what is known and what is inferred."""
    rows, real = tables.updates, clock == "wall"
    count = len(rows)
    taken = np.maximum.accumulate(rows["time_s"]) if count else rows["time_s"].copy()
    after = np.append(taken[1:], np.inf)[:count]
    served = np.minimum(taken + (rows["service_s"] if real else 1e-6), after)
    measured = np.minimum(taken + rows["measure_s"], served)
    merged = np.minimum(measured + rows["merge_s"], served)
    received = np.maximum(taken - np.nan_to_num(rows["receive_s"]), np.append([0.0], taken[:-1])[:count])
    server = (received, taken, measured, merged, served)
    order = np.argsort(rows["client"], kind="stable")
    client = rows["client"][order]
    again = np.append([False], client[1:] == client[:-1])[:count]
    before = np.roll(order, 1)  # in the order of clients: the update before
    # The reply to an update left with the update that made the version that it carried, which may be a later one.
    made = np.searchsorted(rows["version"], rows["base_version"][order])
    left = np.maximum(before, np.minimum(made, order))
    begins = np.sort(tables.events["time_s"][tables.events["kind"] == b"began"]) if real else np.zeros(0)
    job = np.append([0.0], begins)[np.searchsorted(begins, taken[order], side="right")]
    ordered = np.empty(count)
    ordered[order] = np.minimum(np.maximum(np.where(again, served[left], 0.0), job), taken[order])
    answered = np.full(count, np.nan)
    answered[before[again]] = ordered[order[again]]
    for event in tables.events[np.isin(tables.events["kind"], (b"joined", b"back"))]:
        first = np.flatnonzero((rows["client"] == event["client"]) & (taken >= event["time_s"]))[:1]
        ordered[first] = np.maximum(ordered[first], event["time_s"])
    if not real:
        return Rounds(ordered, ordered, taken, taken, *server, answered)
    spare = np.maximum(taken - ordered - rows["compute_s"], 0.0)
    least = np.full(int(rows["client"].max(initial=-1)) + 1, np.inf)
    np.minimum.at(least, rows["client"], spare)
    way = least[rows["client"]] / 2
    began = ordered + way
    trained = np.minimum(began + rows["compute_s"], taken - way)
    return Rounds(ordered, began, trained, np.minimum(trained + way, taken), *server, answered)


def _names(tables: Tables, clock: str) -> Iterator[str]:
    """Names of the tracks."""
    host = tables.attributes["placement"][0]["host"].decode()  # type: ignore[index]
    yield _meta(SERVER, 0, "process_name", f"server on {host} ({SECONDS[clock]} seconds)")
    yield _meta(CLIENTS, 0, "process_name", f"clients ({SECONDS[clock]} seconds)")
    tracks = {RECEIPTS: "receive", UPDATES: "updates", TESTS: "evaluate", CHECKPOINTS: "checkpoint", EVENTS: "events"}
    for track, name in tracks.items():
        yield _meta(SERVER, track, "thread_name", name)
    for client in np.unique(tables.updates["client"]).tolist():
        yield _meta(CLIENTS, FIRST + client, "thread_name", f"client {client}")


def _meta(pid: int, tid: int, what: str, name: str) -> str:
    return json.dumps({"ph": "M", "pid": pid, "tid": tid, "name": what, "args": {"name": name}}, separators=(",", ":"))


def _slice(pid: int, tid: int, name: str, start: float, end: float, args: str = "") -> str:
    """A slice from start to end, which are seconds; both are rounded, so that slices that touch still do."""
    at, until = round(start * 1e7), round(end * 1e7)
    more = f',"args":{args}' if args else ""
    return f'{{"ph":"X","pid":{pid},"tid":{tid},"ts":{at / 10},"dur":{(until - at) / 10},"name":"{name}"{more}}}'


def _flow(kind: str, number: int, pid: int, tid: int, at: float) -> str:
    """A point of an arrow, which belongs to the slice that it lies in."""
    bound = ',"bp":"e"' if kind == "f" else ""
    return f'{{"ph":"{kind}","id":{number},"pid":{pid},"tid":{tid},"ts":{at * 1e6:.2f},"cat":"u","name":"update"{bound}}}'


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "null"


def _updates(rows: np.ndarray, times: Rounds, clock: str) -> Iterator[str]:
    """Slices and arrows of each update. An arrow leads from the end of training over the server to the next training."""
    real, arrow = clock == "wall", dict[int, int]()  # by client: the update that its order answers
    columns = (rows[name].tolist() for name in ("client", "round", "epochs", "gamma", "eta", "tau", "accepted"))
    each = zip(zip(*columns, strict=True), zip(*(column.tolist() for column in times), strict=True), strict=True)
    for number, ((client, turn, K, gamma, eta, tau, good), at) in enumerate(each):
        ordered, began, trained, sent, received, taken, measured, merged, served, answered = at
        track, inside = FIRST + client, min((trained - began) / 2, 1e-6)
        if real:
            yield _slice(CLIENTS, track, "receive", ordered, began)
        yield _slice(CLIENTS, track, "train", began, trained, f'{{"round":{turn},"K":{K}}}')
        if client in arrow:
            yield _flow("f", arrow[client], CLIENTS, track, began + inside)
        yield _flow("s", number, CLIENTS, track, trained - inside)
        if real:
            yield _slice(CLIENTS, track, "send", trained, sent)
        if real or answered > served:
            yield _slice(CLIENTS, track, "wait", sent, served if math.isnan(answered) else answered)
        told = f'"gamma":{_number(gamma)},"eta":{_number(eta)},"tau":{tau}' if good else '"refused":1'
        yield _slice(SERVER, UPDATES, "update", taken, served, f'{{"client":{client},{told}}}')
        if real:
            yield _slice(SERVER, RECEIPTS, "receive", received, taken, f'{{"client":{client}}}')
            yield _slice(SERVER, UPDATES, "measure", taken, measured)
            yield _slice(SERVER, UPDATES, "merge", measured, merged)
            yield _slice(SERVER, UPDATES, "reply", merged, served)
        yield _flow("t", number, SERVER, UPDATES, (taken + served) / 2)
        arrow[client] = number


def _events(tables: Tables, clock: str) -> Iterator[str]:
    """Tests, checkpoints, and what else happened; without the slices behind the checkpoint that a later job began from."""
    until, kept = math.inf, []
    for event in tables.events[::-1]:
        if event["kind"] == b"began":
            until = min(until, float(event["time_s"]))
        if not event["seconds"] or event["time_s"] + event["seconds"] <= until:
            kept.append(event)
    for event in kept[::-1]:
        kind, start, text = bytes(event["kind"]), float(event["time_s"]), event["text"].decode(errors="replace")
        track = {b"evaluated": TESTS, b"checkpoint": CHECKPOINTS}.get(kind, EVENTS)
        if track != EVENTS and clock == "wall":
            name = "evaluate" if track == TESTS else "checkpoint"
            yield _slice(SERVER, track, name, start, start + float(event["seconds"]), json.dumps({"what": text}))
        else:
            told = {
                "ph": "i",
                "pid": SERVER,
                "tid": track,
                "ts": round(start * 1e7) / 10,
                "s": "t",
                "name": text or kind.decode(),
            }
            yield json.dumps(told, separators=(",", ":"))
