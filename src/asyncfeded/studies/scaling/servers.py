"""How many ranks a server needs: what an update takes of each of them, and of the links between the hosts.

With S server ranks each has an S-th of every update, and each host has a link of B bytes per second in each direction. An
update of P parameters, 4 P bytes long, takes

    a + b P / S        of the processor of every server rank,
    4 P / (m B)        of the links in each direction, where m, the fewer of S and the clients' hosts, go on at a time.

What takes longest is the service of queueing.py: all updates pass through it one after the other. The rest of an update's
way is its latency, for meanwhile the server serves others: together with the service it takes Z, the client's round, L, the
waking up, a + b P / S, and 4 P / B for each direction, since a client's own link carries no update faster than that.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asyncfeded.model.kernel import CHUNK
from asyncfeded.studies.scaling.grid import ScalingGrid, Wanted
from asyncfeded.studies.scaling.queueing import Times, mean_values, saturation
from asyncfeded.studies.scaling.table import ScalingRow


class Measured(NamedTuple):
    """What a run says of an update."""

    params: int
    servers: int
    service_s: float
    """Processor time of the busiest server rank for an update."""
    latency_s: float
    """What a client waits besides, while no other update is in its way."""


class Cost(NamedTuple):
    """What an update takes besides the links, in seconds."""

    fixed_s: float
    """a."""
    param_s: float
    """b."""
    latency_s: float
    """L."""


class Answer(NamedTuple):
    """How many server ranks are needed for what is wanted."""

    label: str
    rule: str
    wanted: Wanted
    servers: int
    """0: no number suffices."""
    one: Times
    """With one server rank."""
    many: Times
    """With so many as are needed; if no number suffices, with the most that help."""

    @property
    def limit(self) -> str:
        """What a single server rank is saturated by."""
        return "links" if self.one.service_s == link_s(self.wanted, 1) else "processor"


def fit(runs: Sequence[Measured]) -> Cost:
    """Fit what an update takes: a and b on all runs, L as what is left for a model without parameters.

    From runs of one size, a and L are 0: all grows with the model.
    """
    fixed_s, param_s = _line([run.params / run.servers for run in runs], [run.service_s for run in runs])
    return Cost(fixed_s, param_s, _line([run.params for run in runs], [run.latency_s for run in runs])[0])


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Least squares of y = a + b x, neither below 0; a = 0 if all x are the same."""
    xs, ys = np.array(x, np.float64), np.array(y, np.float64)
    from_mean = xs - xs.mean()
    slope = float(from_mean @ ys / (from_mean @ from_mean)) if from_mean.any() else math.inf
    level = float(ys.mean() - slope * xs.mean())
    if slope < 0:
        return float(ys.mean()), 0.0
    return (level, slope) if level >= 0 else (0.0, float(xs @ ys / (xs @ xs)))


def link_s(wanted: Wanted, servers: int) -> float:
    """How long an update takes of the links in one direction."""
    at_once = min(servers, wanted.hosts or wanted.clients)
    return 32 * wanted.params / (at_once * 1e9 * wanted.link_gbit) if wanted.link_gbit else 0.0


def times(cost: Cost, wanted: Wanted, servers: int) -> Times:
    """The times that an update takes with so many server ranks."""
    processor_s, one_way_s = cost.fixed_s + cost.param_s * wanted.params / servers, link_s(wanted, servers)
    service_s = max(processor_s, one_way_s)
    alone_s = cost.latency_s + processor_s + 2 * link_s(wanted, 1)
    return Times(service_s, alone_s - service_s, np.array([wanted.round_s]), 0)


def needed(cost: Cost, wanted: Wanted) -> int:
    """The fewest server ranks that so many clients do not saturate; 0: no number suffices.

    A rank has one chunk of the model at least.
    """
    most = -(-wanted.params // CHUNK)
    return next((servers for servers in range(1, most + 1) if saturation(times(cost, wanted, servers)) >= wanted.clients), 0)


def answer(grid: ScalingGrid, rows: Sequence[ScalingRow]) -> list[Answer]:
    """Answer all that the grid wants, with each rule, from the runs that predictions are fitted on."""
    made = []
    for rule in dict.fromkeys(row.run.rule for row in rows) if grid.wanted else ():
        mine = [row for row in rows if row.run.rule == rule and row.run.clients in grid.fitted and len(row.think_s)]
        if not mine:
            continue
        alone = min(row.run.clients for row in mine)
        cost = fit(
            [
                Measured(row.params, row.run.config.servers, row.service_s, max(row.wait_s - row.service_s, 0.0))
                for row in mine
                if row.run.clients == alone
            ]
        )
        for label, wanted in grid.wanted.items():
            servers = needed(cost, wanted)
            many = times(cost, wanted, servers or -(-wanted.params // CHUNK))
            made.append(Answer(label, rule, wanted, servers, times(cost, wanted, 1), many))
    return made


def write_csv(answers: Sequence[Answer], path: Path) -> None:
    """A line for each answer."""
    head = ["label", "rule", "params", "clients", "round_s", "link_gbit", "hosts", "servers", "limit"]
    head += [f"{what}_{name}" for what in ("saturation", "updates_per_s") for name in ("one", "many")]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        for one in answers:
            wanted = one.wanted
            cells = [one.label, one.rule, wanted.params, wanted.clients, wanted.round_s, wanted.link_gbit, wanted.hosts]
            writer.writerow([*cells, one.servers, one.limit, *(f"{figure:.6g}" for figure in _figures(one))])


def _figures(one: Answer) -> list[float]:
    """The clients that saturate one server rank and so many as are needed, and the updates per second of both."""
    both = (one.one, one.many)
    return [*map(saturation, both), *(mean_values(each, one.wanted.clients).updates_per_s for each in both)]


def to_markdown(answers: Sequence[Answer]) -> str:
    """One table of all answers; nothing if there are none."""
    if not answers:
        return ""
    head = "wanted | rule | parameters | clients | round, s | link, Gbit/s | server ranks | N\\*: one rank | so many"
    lines = ["### Server ranks that are needed", "", f"| {head} | updates/s: one rank | so many | one is limited by |"]
    lines.append("|" + "---:|" * 12)
    for one in answers:
        wanted, figures = one.wanted, _figures(one)
        cells = [one.label, one.rule, f"{wanted.params:,}", f"{wanted.clients:,}", f"{wanted.round_s:g}"]
        cells += [f"{wanted.link_gbit:g}" if wanted.link_gbit else "", f"**{one.servers or 'none suffices'}**"]
        cells += [*(f"{figure:,.4g}" for figure in figures), f"its {one.limit}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
