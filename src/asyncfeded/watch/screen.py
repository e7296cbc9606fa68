"""The screen of a watcher: what a run has reached, what its server does, and a table of its clients.

Keys sort, filter and scroll the table.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from asyncfeded.watch.clients import Clients
from asyncfeded.watch.state import SECONDS, State, median

COLUMNS = (
    "client", "K", "updates", "share", "gamma", "eta", "loss", "compute s", "wait s", "round s", "seen", "refused",
)  # fmt: skip
SORTS = ("need", *(name for name in COLUMNS if name != "share"))
"""What the table can be sorted by; all but `need` and `client` begin with the largest."""
FILTERS = ("all", "gone", "refused", "never seen")
PHASES = {"running": "green", "silent": "red", "ended": "cyan"}
KEYS = "s/S sort  r reverse  f filter  ↑↓ PgUp/PgDn scroll  q quit"


class Row(NamedTuple):
    """A client in the table."""

    client: int
    cells: tuple[str, ...]
    note: str


@dataclass
class View:
    """What a user has chosen with the keys."""

    sort: str = "need"
    reverse: bool = False
    filter: str = "all"
    offset: int = 0
    """Rows that are scrolled away."""

    def press(self, key: str, page: int) -> bool:
        """Take a key; `page`: rows that fit. Returns False if it means to quit."""
        if key in ("s", "S"):
            self.sort = _next(SORTS, self.sort, 1 if key == "s" else -1)
            self.reverse, self.offset = False, 0
        elif key == "r":
            self.reverse = not self.reverse
        elif key == "f":
            self.filter, self.offset = _next(FILTERS, self.filter, 1), 0
        elif step := {"up": -1, "down": 1, "page up": -page, "page down": page}.get(key, 0):
            self.offset = max(0, self.offset + step)
        return key not in ("q", "Q", "\x03")

    def order(self, clients: Clients, now_s: float) -> np.ndarray:
        """Ids of the clients to show."""
        if self.sort in ("need", "client"):
            order = clients.by_need(now_s) if self.sort == "need" else np.arange(clients.count)
        else:
            values = _columns(clients, now_s)[self.sort]
            order = np.argsort(-np.nan_to_num(values.astype(np.float64), nan=-np.inf), kind="stable")
        shown = {
            "all": np.ones(clients.count, np.bool_),
            "gone": clients.lost | clients.dropped,
            "refused": clients.refused > 0,
            "never seen": clients.seen_s == 0,
        }[self.filter]
        order = order[shown[order]]
        found: np.ndarray = order[::-1] if self.reverse else order
        return found


def rows(state: State, view: View, most: int) -> tuple[list[Row], int]:
    """The rows of the table, at most so many, and how many clients pass the filter."""
    clients, now = state.clients, state.time_s
    order = view.order(clients, now)
    view.offset = min(view.offset, max(0, len(order) - most))
    columns, share, notes = _columns(clients, now), clients.share(), clients.notes(now)
    made = []
    for client in order[view.offset : view.offset + most].tolist():
        numbers = {name: float(column[client]) for name, column in columns.items()}
        cells = [_count(numbers["K"]), _count(numbers["updates"]), f"{share[client]:.1%}"]
        cells += [_number(numbers[name]) for name in ("gamma", "eta", "loss", "compute s", "wait s", "round s")]
        cells.append(f"{_number(numbers['seen'])} s ago" if clients.seen_s[client] else "never")
        cells.append(_count(numbers["refused"]) if numbers["refused"] else "")
        made.append(Row(client, tuple(cells), notes[client]))
    return made, len(order)


def render(state: State, view: View, height: int) -> Group:
    """The screen, of so many lines."""
    head = _head(state)
    room = max(height - len(head) - 4, 1)  # the line of columns, a blank one above it, and two at the end
    shown, passing = rows(state, view, room)
    simulated = "" if state.is_wall else "*"
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in COLUMNS:
        unit = " s" if name == "seen" else ""
        mark = simulated if name in ("round s", "seen") else ""
        arrow = " ▲" if view.reverse else " ▼"
        chosen = arrow if name == view.sort else ""
        table.add_column(f"{name}{unit}{mark}{chosen}", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in shown:
        style = "red" if row.note.startswith(("lost", "dropped")) else "yellow" if row.note else ""
        table.add_row(str(row.client), *row.cells, row.note, style=style)
    end = f"clients {view.offset + 1 if shown else 0}-{view.offset + len(shown)} of {passing}"
    end += f" ({view.filter})  sorted by {view.sort}{', reversed' if view.reverse else ''}"
    end += f"  * {SECONDS[state.config.clock]} seconds" if simulated else ""
    return Group(*head, Text(), table, Text(end, style="dim"), Text(KEYS, style="dim", end=""))


def line(state: State) -> str:
    """The run in one line, for a log or a terminal that shows no pictures."""
    parts = [state.phase, f"{state.time_s:.1f} {'' if state.is_wall else SECONDS[state.config.clock] + ' '}s"]
    parts.append(f"{state.updates} updates ({_number(state.rates()[0])}/s)")
    if metrics := _metrics(state):
        parts.append(metrics)
    recent = state.recent[state.recent["accepted"]]
    if len(recent):
        parts.append(f"gamma {_number(median(recent['gamma']))} eta {_number(median(recent['eta']))}")
    for name, count in {"refused": state.refused, "lost": int(state.clients.lost.sum())}.items():
        parts += [f"{count} {name}"] if count else []
    if not math.isnan(left := state.left_s()) and state.phase == "running":
        parts.append(f"{duration(left)} left")
    if state.phase == "ended" and state.said:
        parts.append(state.said[-1])
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _head(state: State) -> list[Text | Table]:
    config, recent = state.config, state.recent[state.recent["accepted"]]
    task, rule = config.task["name"], config.rule["name"]
    clock = f"{config.clock} clock: {state.time_s:.1f} {SECONDS[config.clock]} s"
    title = Text.assemble(
        (f" {state.phase} ", f"reverse {PHASES[state.phase]}"), f"  {task}, {rule}  {config.run_dir}  {clock}"
    )
    lines: list[Text | Table] = [title, _limits(state)]
    lines.append(Text(_metrics(state) or "not tested yet"))
    medians = {name: _number(median(recent[name])) for name in ("gamma", "eta", "tau", "epochs")}
    rate = f"{_number(state.rates()[0])} updates/s{'' if state.is_wall else ' (real seconds)'}"
    lines.append(
        Text(f"{rate}  medians: gamma {medians['gamma']}  eta {medians['eta']}  tau {medians['tau']}  K {medians['epochs']}")
    )
    busy = state.busy()
    server = [f"busy {busy:.0%}" if not math.isnan(busy) else "", f"queue {_number(_mean(state.recent['queue']))}"]
    server.append(f"{1e3 * median(recent['service_s']):.3g} ms per update" if len(recent) else "")
    for name, kind in {"test": b"evaluated", "checkpoint": b"checkpoint"}.items():
        last = state.last(kind)
        took = f"{duration(last['age_s'])} ago, took {last['seconds']:.2g} s" if last else "none yet"
        server.append(f"{name} {took}")
    lines.append(Text("server: " + "  ".join(filter(None, server))))
    gone, dropped = int(state.clients.lost.sum()), int(state.clients.dropped.sum())
    lines.append(
        Text(f"{state.refused} refused  {gone} clients lost  {dropped} dropped", style="red" if gone or dropped else "")
    )
    if state.phase == "silent":
        lines.append(Text(f"no sign of its job; asyncfeded resume {config.run_dir} goes on with it", style="red"))
    lines += [Text(sentence, style="dim", no_wrap=True, overflow="ellipsis") for sentence in list(state.said)[-2:]]
    for one in lines:
        if isinstance(one, Text):
            one.no_wrap, one.overflow = True, "ellipsis"
    return lines


def _limits(state: State) -> Table:
    """A bar for each limit, and the time left."""
    bars = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    cells: list[Text | ProgressBar] = []
    for name, (value, limit) in state.limits().items():
        part = value / limit if limit > 0 and math.isfinite(value) else 0.0
        cells += [Text(f"{name} {value:.6g} of {limit:g}"), ProgressBar(total=1.0, completed=min(part, 1.0), width=16)]
    left = state.left_s()
    cells.append(Text(f"{duration(left)} left" if not math.isnan(left) and state.phase == "running" else ""))
    bars.add_row(*cells)
    return bars


def _metrics(state: State) -> str:
    score = state.score
    if score is None:
        return ""
    values = [f"{name} {metric.text(float(score[name]))}" for name, metric in state.metrics.by_name.items()]
    return "  ".join(values) + f"  (version {int(score['version'])})"


def _columns(clients: Clients, now_s: float) -> dict[str, np.ndarray]:
    never = clients.seen_s == 0
    return {
        "K": clients.K,
        "updates": clients.updates,
        "gamma": clients.gamma,
        "eta": clients.eta,
        "loss": clients.loss,
        "compute s": clients.compute_s,
        "wait s": clients.wait_s,
        "round s": clients.round_s,
        "seen": np.where(never, np.inf, now_s - clients.seen_s),
        "refused": clients.refused,
    }


def _next(values: tuple[str, ...], value: str, step: int) -> str:
    return values[(values.index(value) + step) % len(values)]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _count(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0f}"
